// Why a task is skipped: a dialog of reasons, the last of them in the rater's own words.

import { $ } from "./screens.js";

const REASONS = [
  ["cannot_tell", "I cannot tell which is better"],
  ["prompt_unclear", "I do not understand the prompt"],
  ["images_broken", "Images are missing or broken"],
  ["uncomfortable", "I would rather not look at these"],
  ["other", "Another reason"],
];
const OTHER = "other";

/** Fill the dialog; `onSkip(reason)` is called when one was chosen. */
export function enableSkipDialog(onSkip) {
  $("skip-reasons").append(
    ...REASONS.map(([value, text], index) => {
      const label = document.createElement("label");
      label.className = "choice";
      const input = Object.assign(document.createElement("input"), { type: "radio", name: "reason", value, checked: index === 0 });
      label.append(input, text);
      return label;
    }),
  );
  $("skip-reasons").addEventListener("change", () => {
    const isOther = chosenReason() === OTHER;
    $("skip-text").hidden = !isOther;
    if (isOther) $("skip-text").focus();
  });
  $("skip-cancel").addEventListener("click", () => $("skip-dialog").close());
  $("skip-form").addEventListener("submit", () => {
    const words = $("skip-text").value.trim();
    onSkip(chosenReason() === OTHER && words ? `${OTHER}: ${words}` : chosenReason());
    $("skip-text").value = "";
  });
}

export function openSkipDialog() {
  $("skip-dialog").showModal();
  $("skip-form").elements.reason.forEach((input) => input.checked && input.focus());
}

const chosenReason = () => $("skip-form").elements.reason.value;
