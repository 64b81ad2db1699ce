// Asking until an answer comes, however long the network is away; meanwhile the page says so.

import { Unreachable } from "./api.js";
import { $ } from "./screens.js";

const RETRY_S = [1, 2, 4, 8, 15, 30];

/** `request()` until the server answers. Problems are thrown. */
export async function persist(request, { title = "No connection; trying again.", text = "Nothing is lost." } = {}) {
  for (let attempt = 0; ; attempt++) {
    try {
      const reply = await request();
      $("offline").hidden = true;
      return reply;
    } catch (error) {
      if (!(error instanceof Unreachable)) {
        $("offline").hidden = true;
        throw error;
      }
      const seconds = error.retryAfterS ?? RETRY_S[Math.min(attempt, RETRY_S.length - 1)];
      $("offline-title").textContent = title;
      $("offline-text").textContent = text;
      $("offline").hidden = false;
      await waitForRetry(seconds);
    }
  }
}

/** The time, the network's return, or the button, whichever comes first. */
function waitForRetry(seconds) {
  return new Promise((resolve) => {
    const go = () => {
      clearTimeout(timer);
      window.removeEventListener("online", go);
      $("try-now").removeEventListener("click", go);
      resolve();
    };
    const timer = setTimeout(go, seconds * 1000);
    window.addEventListener("online", go);
    $("try-now").addEventListener("click", go);
  });
}
