// Zoom of all candidates at once, at the same place: three CSS variables on the grid (scale, and where to look).

const STEP = 0.15; // of an image, for an arrow key
const ALREADY_NATIVE = 1.02;
const DOUBLE = 2; // for images shown at native size or larger as they are

export class Zoom {
  /** grid: the element that holds `.picture` frames; changed(on): called when zoom goes on or off. */
  constructor(grid, changed) {
    this.grid = grid;
    this.changed = changed;
    this.on = false;
    this.x = this.y = 0.5;
    grid.addEventListener("pointermove", (event) => this.#follow(event));
  }

  /** At the frame's place (x, y in 0…1) that the pointer shows, or in the middle. */
  toggle(x = 0.5, y = 0.5) {
    this.on = !this.on;
    this.grid.classList.toggle("zoomed", this.on);
    this.grid.style.setProperty("--zoom", this.on ? this.#nativeScale() : 1);
    this.lookAt(x, y);
    this.changed(this.on);
  }

  off() {
    if (this.on) this.toggle();
  }

  lookAt(x, y) {
    this.x = Math.min(1, Math.max(0, x));
    this.y = Math.min(1, Math.max(0, y));
    this.grid.style.setProperty("--look-x", `${this.x * 100}%`);
    this.grid.style.setProperty("--look-y", `${this.y * 100}%`);
  }

  step(dx, dy) {
    this.lookAt(this.x + dx * STEP, this.y + dy * STEP);
  }

  /** How much larger an image is at one of its pixels for one of the page's, the largest of them. */
  #nativeScale() {
    const scales = [...this.grid.querySelectorAll(".picture img")].map((image) => {
      const frame = image.parentElement;
      const fitted = Math.min(frame.clientWidth / image.naturalWidth, frame.clientHeight / image.naturalHeight);
      return 1 / fitted;
    });
    const native = Math.max(...scales.filter(Number.isFinite));
    return native > ALREADY_NATIVE ? native : DOUBLE;
  }

  /** A mouse looks where it points, in whichever image; a finger drags the image. */
  #follow(event) {
    const frame = event.target.closest?.(".picture");
    if (!this.on || !frame) return;
    const box = frame.getBoundingClientRect();
    if (event.pointerType === "mouse") {
      this.lookAt((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    } else if (event.buttons) {
      const scale = Number(this.grid.style.getPropertyValue("--zoom")) - 1;
      this.lookAt(this.x - event.movementX / (box.width * scale), this.y - event.movementY / (box.height * scale));
    }
  }
}
