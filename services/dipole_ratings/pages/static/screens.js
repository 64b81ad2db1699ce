// What the rater's page shows and says: one screen at a time, progress, notices, announcements.

export const $ = (id) => document.getElementById(id);
export const count = (number, one, many) => `${number} ${number === 1 ? one : many}`;
export const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

/** One of loading, invitation, task, empty, paused, left. `rater` is null while nobody has come in. */
export function showScreen(name, rater) {
  document.body.dataset.screen = name;
  for (const screen of document.querySelectorAll(".screen")) screen.hidden = screen.id !== `screen-${name}`;
  const inTask = name === "task";
  $("zoom").hidden = !inTask;
  $("clock").hidden = !inTask;
  $("leave").hidden = !["task", "empty", "paused"].includes(name);
  $("progress").hidden = !rater || $("leave").hidden;
  document.querySelector(`#screen-${name} h1`)?.focus({ preventScroll: true });
}

export function showProgress(rater) {
  $("answered-today").textContent = rater.answered_today;
  $("waiting").textContent = rater.waiting;
  const all = rater.answered_today + rater.waiting;
  $("meter").style.width = `${all ? (100 * rater.answered_today) / all : 0}%`;
}

/** Politely, and for eyes as well. */
export function say(message) {
  $("said").textContent = message;
}

export function announce(message) {
  $("alarm").textContent = message;
}

/** A refusal that the rater can do nothing about but read. */
export function tellTrouble(title, error) {
  $("trouble-title").textContent = title;
  $("trouble-text").textContent = sentence(error.message);
  $("trouble").hidden = false;
}

$("trouble-close").addEventListener("click", () => ($("trouble").hidden = true));
