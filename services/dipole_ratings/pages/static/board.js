// The candidates and the tiers of one task on the page. It draws what a Ranking holds, and says what was asked of it.

import { relative } from "./api.js";
import { make } from "./dom.js";
import { UNRANKED, nameTier } from "./ranking.js";

const GAP_PX = 16; // between cards, as in rate.css
const SIDE_PX = 56; // the column of buttons beside an image
const FOOT_PX = 52; // the row of buttons below an image
const LETTER_PX = 44; // the letter above or before the buttons
const BARE_GAIN = 1.3; // images without buttons beside them must be that much larger
const LAYOUT_NAMES = / ?\b(side|foot|bare)\b/g;
const PHONE = window.matchMedia("(max-width: 700px)");

export class Board {
  /** pictureClicked(label, x, y, pointerType), selected(label), placed(label or null, tier), loaded(). */
  constructor({ stage, grid, lanes }, handlers) {
    Object.assign(this, { stage, grid, lanes, handlers });
    this.selection = null;
    this.images = new Map();
    grid.addEventListener("click", (event) => this.#clickGrid(event));
    lanes.addEventListener("click", (event) => this.#clickLanes(event));
    grid.addEventListener("focusin", (event) => {
      const card = event.target.closest(".card");
      if (card && card.dataset.label !== this.selection) handlers.selected(card.dataset.label);
    });
    new ResizeObserver(() => this.#fit()).observe(stage);
    PHONE.addEventListener("change", () => this.#fit());
  }

  show(task, ranking) {
    this.images.clear();
    this.ranking = ranking;
    this.selection = null;
    this.aspect = task.images[0].width / task.images[0].height;
    this.grid.replaceChildren(...task.images.map((image) => this.#makeCard(image)));
    this.lanes.replaceChildren(...[...Array(ranking.maxTiers).keys()].map((index) => this.#makeLane(index + 1)), this.#makeLane(UNRANKED));
    this.lanes.style.setProperty("--tiers", ranking.maxTiers);
    this.#fit();
    this.render();
  }

  get areLoaded() {
    return [...this.images.values()].every((image) => image.dataset.state === "loaded");
  }

  get failedLabels() {
    return [...this.images].filter(([, image]) => image.dataset.state === "failed").map(([label]) => label);
  }

  select(label, { focus = false } = {}) {
    this.selection = label;
    this.render();
    if (focus) this.card(label)?.focus({ preventScroll: false });
  }

  card(label) {
    return this.grid.querySelector(`[data-label="${label}"]`);
  }

  render() {
    for (const card of this.grid.children) {
      const label = card.dataset.label;
      const tier = this.ranking.tierOf(label);
      const isSelected = label === this.selection;
      card.classList.toggle("selected", isSelected);
      card.classList.toggle("ranked", tier !== UNRANKED);
      card.toggleAttribute("aria-current", isSelected);
      if (isSelected) card.setAttribute("aria-current", "true");
      card.setAttribute("aria-label", `Candidate ${label}, ${nameTier(tier, this.ranking.maxTiers)}`);
      card.querySelector(".badge").textContent = tier === UNRANKED ? "unranked" : `tier ${tier}`;
      for (const button of card.querySelectorAll("[data-place]")) {
        button.setAttribute("aria-pressed", String(Number(button.dataset.place) === tier));
      }
    }
    for (const lane of this.lanes.children) this.#renderLane(lane);
  }

  #renderLane(lane) {
    const tier = Number(lane.dataset.tier);
    const labels = this.ranking.in(tier);
    const items = lane.querySelector(".lane-items");
    const shown = [...items.children].map((item) => item.dataset.drag);
    if (shown.join() !== labels.join()) items.replaceChildren(...labels.map((label) => this.#makeThumb(label)));
    for (const item of items.children) item.classList.toggle("selected", item.dataset.drag === this.selection);
    lane.classList.toggle("filled", labels.length > 0);
    lane.querySelector(".lane-letters").textContent = labels.join(" ");
    lane.querySelector(".lane-act").textContent = this.selection ? `: place candidate ${this.selection} here` : "";
  }

  #makeCard({ label, url, width, height }) {
    const image = make("img", { alt: `Candidate ${label}`, draggable: false, width, height, decoding: "async" });
    this.images.set(label, image);
    const retry = make("button", { type: "button", className: "retry", textContent: `Load ${label} again`, hidden: true });
    const load = () => {
      image.dataset.state = "loading";
      retry.hidden = true;
      image.removeAttribute("src");
      image.src = relative(url);
    };
    image.addEventListener("load", () => {
      image.dataset.state = "loaded";
      this.handlers.loaded();
    });
    image.addEventListener("error", () => {
      image.dataset.state = "failed";
      retry.hidden = false;
      this.handlers.loaded();
    });
    retry.addEventListener("click", load);
    load();

    const places = make("div", { className: "places" });
    for (let tier = 1; tier <= this.ranking.maxTiers; tier++) places.append(this.#makePlace(label, tier));
    places.append(this.#makePlace(label, UNRANKED));
    const picture = make("div", { className: "picture" }, image, retry);
    picture.dataset.drag = label;
    const letter = make("span", { className: "letter", textContent: label, ariaHidden: "true" });
    const badge = make("span", { className: "badge", ariaHidden: "true" });
    const card = make("div", { className: "card", tabIndex: 0, role: "group" }, picture, make("div", { className: "card-side" }, letter, badge, places));
    card.dataset.label = label;
    return card;
  }

  #makePlace(label, tier) {
    const name = tier === UNRANKED ? `Candidate ${label}: 0, unranked` : `Candidate ${label}: ${nameTier(tier, this.ranking.maxTiers)}`;
    const button = make("button", { type: "button", className: "place", textContent: String(tier), ariaLabel: name });
    button.dataset.place = tier;
    return button;
  }

  #makeLane(tier) {
    const word = tier === 1 ? "best" : tier === this.ranking.maxTiers ? "worst" : tier === UNRANKED ? "unranked" : "";
    const button = make(
      "button",
      { type: "button", className: "lane-button" },
      make("span", { className: "lane-number", textContent: String(tier) }), " ",
      make("span", { className: "lane-word", textContent: word }), " ",
      make("span", { className: "lane-letters" }),
      make("span", { className: "lane-act visually-hidden" }),
    );
    const lane = make("li", { className: tier === UNRANKED ? "lane tray" : "lane" }, button, make("div", { className: "lane-items" }));
    lane.dataset.tier = tier;
    return lane;
  }

  #makeThumb(label) {
    const image = this.images.get(label).cloneNode();
    image.alt = "";
    const thumb = make("button", { type: "button", className: "thumb", ariaLabel: `${label}: select this candidate` }, image, make("span", { textContent: label }));
    thumb.dataset.drag = label;
    return thumb;
  }

  #clickGrid(event) {
    const card = event.target.closest(".card");
    if (!card || event.target.closest(".retry")) return;
    const { label } = card.dataset;
    const place = event.target.closest("[data-place]");
    if (place) {
      this.handlers.placed(label, Number(place.dataset.place));
      if (event.detail) card.focus(); // by pointer: keys mean the card from now on
      return;
    }
    const picture = event.target.closest(".picture");
    if (!picture) return;
    const box = picture.getBoundingClientRect();
    this.handlers.pictureClicked(label, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height, event.pointerType);
  }

  #clickLanes(event) {
    const thumb = event.target.closest(".thumb");
    if (thumb) return this.handlers.selected(thumb.dataset.drag, { focus: event.detail > 0 });
    const lane = event.target.closest(".lane");
    if (!lane) return;
    this.handlers.placed(this.selection, Number(lane.dataset.tier));
    if (event.detail && this.selection && !PHONE.matches) this.card(this.selection)?.focus();
  }

  /** Columns, and buttons beside or below, so that the images are as large as the stage allows. */
  #fit() {
    const count = this.grid.children.length;
    if (!count || PHONE.matches) {
      this.grid.className = this.grid.className.replace(LAYOUT_NAMES, "");
      this.grid.style.setProperty("--aspect", this.aspect);
      return;
    }
    const { clientWidth: width, clientHeight: height } = this.stage;
    const buttons = this.ranking.maxTiers + 1;
    const layouts = [
      { name: "side", dx: SIDE_PX, dy: 0, needs: (cell) => cell.height >= LETTER_PX + buttons * 41 },
      { name: "foot", dx: 0, dy: FOOT_PX, needs: (cell, size) => size >= LETTER_PX + buttons * 45 },
      { name: "bare", dx: 0, dy: LETTER_PX, needs: () => true, worth: 1 / BARE_GAIN }, // the panel's buttons remain
    ];
    let best = { size: 0, value: 0 };
    for (let columns = 1; columns <= count; columns++) {
      const rows = Math.ceil(count / columns);
      const cell = { width: (width - (columns - 1) * GAP_PX) / columns, height: (height - (rows - 1) * GAP_PX) / rows };
      for (const { name, dx, dy, needs, worth = 1 } of layouts) {
        const size = Math.min(cell.width - dx, (cell.height - dy) * this.aspect);
        if (needs(cell, size) && size * worth > best.value) best = { size, value: size * worth, columns, name };
      }
    }
    const size = Math.max(96, Math.floor(best.size));
    this.grid.className = this.grid.className.replace(LAYOUT_NAMES, "");
    this.grid.classList.add(best.name ?? "bare");
    this.grid.style.setProperty("--columns", best.columns);
    this.grid.style.setProperty("--frame-width", `${size}px`);
    this.grid.style.setProperty("--frame-height", `${Math.floor(size / this.aspect)}px`);
  }
}
