// Drag a candidate to a tier. One way among others: everything works by buttons, keys and taps as well.

const THRESHOLD_PX = 8;
const HOLD_MS = 280; // a finger that rests this long drags; one that moves sooner scrolls

/**
 * root: where candidates (`[data-label]`) and tiers (`[data-tier]`) are; mayDrag(source): false where a drag means
 * something else now; drop(label, tier): called where it was let go over a tier.
 */
export function enableDrag(root, { mayDrag, drop }) {
  let drag = null; // {label, pointer, x, y, ghost, timer}

  const end = () => {
    clearTimeout(drag?.timer);
    drag?.ghost?.remove();
    root.classList.remove("dragging");
    markTarget(null);
    drag = null;
  };

  const begin = () => {
    drag.ghost = drag.image.cloneNode();
    drag.ghost.removeAttribute("id");
    drag.ghost.alt = "";
    drag.ghost.className = "ghost";
    document.body.append(drag.ghost);
    root.classList.add("dragging");
    follow(drag.x, drag.y);
  };

  const follow = (x, y) => {
    drag.ghost.style.transform = `translate(${x}px, ${y}px) translate(-50%, -50%) rotate(-2deg)`;
    markTarget(tierAt(x, y));
  };

  const tierAt = (x, y) => document.elementFromPoint(x, y)?.closest("[data-tier]") ?? null;

  const markTarget = (tier) => {
    for (const marked of root.querySelectorAll(".drop-here")) if (marked !== tier) marked.classList.remove("drop-here");
    tier?.classList.add("drop-here");
  };

  root.addEventListener("pointerdown", (event) => {
    const source = event.target.closest("[data-drag]");
    if (drag || !source || event.button !== 0 || !event.isPrimary || !mayDrag(source)) return;
    const image = source.querySelector("img");
    drag = { label: source.dataset.drag, image, pointer: event.pointerId, x: event.clientX, y: event.clientY };
    if (event.pointerType === "touch") drag.timer = setTimeout(begin, HOLD_MS);
  });

  window.addEventListener("pointermove", (event) => {
    if (event.pointerId !== drag?.pointer) return;
    if (!drag.ghost) {
      if (Math.hypot(event.clientX - drag.x, event.clientY - drag.y) < THRESHOLD_PX) return;
      if (event.pointerType === "touch") return end();
      begin();
    }
    follow(event.clientX, event.clientY);
  });

  window.addEventListener("pointerup", (event) => {
    if (event.pointerId !== drag?.pointer) return;
    const { label, ghost } = drag;
    const tier = ghost && tierAt(event.clientX, event.clientY);
    end();
    if (!ghost) return;
    // the click that follows is no click of the rater's
    window.addEventListener("click", swallow, { capture: true, once: true });
    setTimeout(() => window.removeEventListener("click", swallow, { capture: true }));
    if (tier) drop(label, Number(tier.dataset.tier));
  });

  window.addEventListener("pointercancel", (event) => event.pointerId === drag?.pointer && end());
  window.addEventListener("keydown", (event) => event.key === "Escape" && drag && end());
  // a page that is being scrolled cannot be dragged on, so a drag keeps the page still
  window.addEventListener("touchmove", (event) => drag?.ghost && event.cancelable && event.preventDefault(), { passive: false });
  root.addEventListener("contextmenu", (event) => drag && event.preventDefault());
}

function swallow(event) {
  event.stopPropagation();
  event.preventDefault();
}
