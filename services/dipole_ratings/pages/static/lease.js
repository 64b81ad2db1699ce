// The time that a rater has for a task: it counts down, is renewed while the rater works, warns, and runs out.

const WARN_S = 60;

export class LeaseClock {
  /**
   * renew(): asks the server for more time and resolves to {expires_in_s, heartbeat_s?}; throws when there is none.
   * tick(secondsLeft), warn(secondsLeft), safe(), lapse(): what to show.
   */
  constructor({ renew, tick, warn, safe, lapse }) {
    Object.assign(this, { renew, tick, warn, safe, lapse });
    this.timer = null;
    this.worked = false;
    for (const kind of ["pointerdown", "pointermove", "keydown"]) {
      window.addEventListener(kind, () => (this.worked = true), { passive: true, capture: true });
    }
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.#look());
  }

  start(lease) {
    this.stop();
    this.heartbeatMs = lease.heartbeat_s * 1000;
    this.worked = false;
    this.#grant(lease.expires_in_s);
    this.timer = setInterval(() => this.#look(), 1000);
    this.#look();
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.warned = false;
  }

  get secondsLeft() {
    return Math.max(0, Math.ceil((this.deadline - Date.now()) / 1000));
  }

  /** Ask for more time now. True if it was given. */
  async extend() {
    const timer = this.timer;
    this.lastBeat = Date.now();
    this.worked = false;
    const granted = await this.renew();
    if (!granted || this.timer !== timer) return false;
    this.#grant(granted.expires_in_s);
    this.#look();
    return true;
  }

  #grant(seconds) {
    this.deadline = Date.now() + seconds * 1000;
    this.lastBeat = Date.now();
    this.warnFrom = Math.min(WARN_S, Math.floor(seconds / 2)); // a very short lease would only ever warn
    if (this.warned) this.safe();
    this.warned = false;
  }

  #look() {
    if (!this.timer) return;
    const left = this.secondsLeft;
    this.tick(left);
    if (left === 0) {
      this.stop();
      this.lapse();
    } else if (left <= this.warnFrom) {
      this.warn(left, !this.warned);
      this.warned = true;
    } else if (this.worked && document.visibilityState === "visible" && Date.now() - this.lastBeat >= this.heartbeatMs) {
      this.extend();
    }
  }
}

/** 605 -> "10:05". */
export const clockText = (seconds) => `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
