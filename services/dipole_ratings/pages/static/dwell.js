// How long a task was looked at, without the time in the background.

export class DwellTimer {
  constructor() {
    this.shownMs = 0;
    this.shownSince = null;
    document.addEventListener("visibilitychange", () => this.#turn(document.visibilityState === "visible"));
  }

  restart() {
    this.shownMs = 0;
    this.shownSince = document.visibilityState === "visible" ? performance.now() : null;
  }

  get ms() {
    return this.shownMs + (this.shownSince === null ? 0 : performance.now() - this.shownSince);
  }

  #turn(isVisible) {
    if (!isVisible && this.shownSince !== null) {
      this.shownMs += performance.now() - this.shownSince;
      this.shownSince = null;
    } else if (isVisible && this.shownSince === null) {
      this.shownSince = performance.now();
    }
  }
}
