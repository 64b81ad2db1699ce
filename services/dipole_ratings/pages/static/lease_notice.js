// The time that a task has left, and the notice with which it is kept or taken up again. lease.js counts.

import { clockText } from "./lease.js";
import { $, announce, count } from "./screens.js";

export function showTimeLeft(seconds) {
  $("clock").hidden = false;
  $("time-left").textContent = clockText(seconds);
  $("clock").classList.toggle("soon", seconds <= 60);
}

export function warnOfLapse(seconds, isFirst) {
  showNotice(`${clockText(seconds)} left on this task.`, "Then it is offered to somebody else.", "Keep this task");
  if (isFirst) announce(`${count(seconds, "second is", "seconds are")} left on this task. Press Keep this task to go on.`);
}

export function tellLapse() {
  $("time-left").textContent = clockText(0);
  const kept = "Your ranking is kept. Take the task up again, or submit: it counts if nobody else was quicker.";
  showNotice("The time for this task ran out.", kept, "Take it up again");
}

export function hideLeaseNotice() {
  $("lease-notice").hidden = true;
}

function showNotice(title, text, button) {
  $("lease-title").textContent = title;
  $("lease-text").textContent = text;
  $("extend").textContent = button;
  $("extend").hidden = false;
  $("lease-notice").hidden = false;
}
