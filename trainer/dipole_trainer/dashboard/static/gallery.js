// A job's samples: a row a prompt, a column a fixed noise, the base beside a checkpoint; one slider for all of them.
//
// An evaluation's images lie in one sheet, samples/step-N.png, and each image here is a window onto it: sliding changes
// the address of one background.

import { actionButtons } from "./actions.js";
import { ApiError, begin, followEvents, imageAddress, request, ROOT } from "./api.js";
import { formatNumber, h, segments, view } from "./dom.js";
import { jobHead } from "./job_head.js";

const MAX_SHEETS = 24; // kept as bytes where the server wants a key; the browser's own cache does it otherwise
const SMALL = 200; // images smaller than this are magnified by whole pixels
const id = decodeURIComponent(location.pathname.split("/").at(-2));
const path = `v1/fine_tuning/jobs/${encodeURIComponent(id)}`;
const main = document.getElementById("main");

const state = {
  steps: [],
  step: Number(view.get("step", "-1")),
  mode: view.get("mode", "beside"),
  pinned: new Set(view.get("pin", "").split(",").filter(Boolean).map(Number)),
  only: view.get("only", "") === "pinned",
  swipe: 50,
  follows: view.get("step", null) === null, // the newest step, until one is chosen
};
const sheets = new Map(); // step → address
const scores = new Map(); // step → what each image was scored with

const head = jobHead("gallery");
const slider = h("input", { type: "range", min: "0", step: "1", id: "step", oninput: () => { state.follows = false; show(state.steps[Number(slider.value)]); } });
const said = h("output", { for: "step", class: "nowrap" });
const swipe = h("input", { type: "range", min: "0", max: "100", id: "swipe", oninput: () => setSwipe(Number(swipe.value)) });
const swipeLabel = h("label", { class: "inline small" }, "Swipe: base to the left", swipe);
const only = h("input", { type: "checkbox", onchange: () => { state.only = only.checked; view.set("only", state.only ? "pinned" : null); filter(); } });
const tools = h("div", { class: "card tools gallery-tools" },
  h("label", { class: "inline wide" }, "Step", slider), said,
  segments("Compare", { beside: "Side by side", swipe: "Swipe" }, state.mode, (mode) => { state.mode = mode; view.set("mode", mode); setMode(); }),
  swipeLabel,
  h("label", { class: "inline small" }, only, "Pinned prompts only"));
const grid = h("div", { class: "gallery" });
let job = null;
let cell = null;

begin(start, `There is no job ${id}.`);

async function start() {
  job = await request(path);
  document.title = `Gallery of ${job.suffix ?? job.model} · Dipole`;
  main.append(head.element);
  const refresh = async () => { job = await request(path); showHead(); };
  const showHead = () => head.show(job, actionButtons(job, ROOT, (next) => { job = next; showHead(); }));
  showHead();
  const metrics = await request(`${path}/metrics?points=1`);
  main.append(tools, grid);
  await findSteps();
  followEvents(id, metrics.cursor, (events) => {
    if (events.some((event) => event.kind === "samples")) findSteps();
    if (events.some((event) => !["step", "evaluating"].includes(event.kind))) refresh();
  }, refresh);
}

async function findSteps() {
  const files = await request(`${path}/artifacts?under=samples`);
  const found = files.data.map((file) => /^samples\/step-(\d+)\.png$/.exec(file.path)).filter(Boolean).map((match) => Number(match[1]));
  state.steps = found.sort((a, b) => a - b);
  tools.hidden = !state.steps.length;
  if (!state.steps.length) {
    grid.replaceChildren(h("div", { class: "empty card" }, h("p", {}, "No images yet: the first come with the first evaluation, which a job has when it has prompts to evaluate on (", h("code", {}, "validation_file"), ").")));
    return;
  }
  if (!cell) {
    cell = await request(`${path}/artifacts/samples/prompts.json`);
    await build();
  }
  slider.max = String(state.steps.length - 1);
  slider.disabled = state.steps.length < 2;
  await show(state.follows || !state.steps.includes(state.step) ? state.steps.at(-1) : state.step);
}

async function build() {
  const base = await sheetOf(state.steps[0]);
  const size = await measure(base);
  const columns = Math.round(size.width / cell.width);
  const rows = Math.round(size.height / cell.height);
  grid.style.setProperty("--base", `url("${base}")`);
  grid.style.setProperty("--sheet", `${columns * 100}% ${rows * 100}%`);
  grid.style.setProperty("--shape", `${cell.width} / ${cell.height}`);
  grid.classList.toggle("small", cell.width < SMALL);
  grid.replaceChildren(...cell.prompts.map((prompt, row) => promptRow(prompt, row, columns, rows)));
  setMode();
  setSwipe(state.swipe);
  filter();
}

function promptRow(prompt, row, columns, rows) {
  const pin = h("button", { class: "quiet", type: "button", "aria-pressed": String(state.pinned.has(row)), onclick: () => togglePin(row, pin) }, pinLabel(row));
  return h("section", { class: "card stack", "data-row": String(row), "aria-label": prompt },
    h("div", { class: "head" }, h("h2", {}, prompt), h("div", { class: "actions" }, pin)),
    h("div", { class: "noises" }, Array.from({ length: columns }, (_, column) => imagePair(prompt, row, column, columns, rows))));
}

function imagePair(prompt, row, column, columns, rows) {
  const position = `${columns > 1 ? (column / (columns - 1)) * 100 : 0}% ${rows > 1 ? (row / (rows - 1)) * 100 : 0}%`;
  const image = (kind, of) => {
    const element = h("div", { class: `image ${kind}`, role: "img", "aria-label": `${of}, ${prompt}, noise ${column + 1}` });
    element.style.backgroundPosition = position;
    return element;
  };
  const base = image("base", "Base");
  const now = image("now", "Not shown yet");
  const pair = h("div", { class: "pair", onpointerdown: drag, onpointermove: drag }, base, now);
  return h("figure", { "data-prompt": prompt, "data-row": String(row), "data-column": String(column) }, pair,
    h("figcaption", { class: "small" }, h("span", { class: "muted" }, `noise ${column + 1}`), h("span", { class: "scores" })));
}

function drag(event) {
  if (state.mode !== "swipe" || (event.type === "pointermove" && event.buttons === 0)) return;
  const box = event.currentTarget.getBoundingClientRect();
  setSwipe(Math.min(100, Math.max(0, ((event.clientX - box.left) / box.width) * 100)));
}

function setSwipe(value) {
  state.swipe = value;
  swipe.value = String(value);
  grid.style.setProperty("--swipe", `${value}%`);
}

function setMode() {
  grid.classList.toggle("swiped", state.mode === "swipe");
  swipeLabel.hidden = state.mode !== "swipe";
}

function pinLabel(row) {
  return state.pinned.has(row) ? "★ Pinned" : "☆ Pin";
}

function togglePin(row, button) {
  if (!state.pinned.delete(row)) state.pinned.add(row);
  button.setAttribute("aria-pressed", String(state.pinned.has(row)));
  button.textContent = pinLabel(row);
  view.set("pin", [...state.pinned].sort((a, b) => a - b).join(","));
  filter();
}

/** Pinned prompts first, or alone. */
function filter() {
  only.checked = state.only;
  for (const row of grid.querySelectorAll("section")) {
    const pinned = state.pinned.has(Number(row.dataset.row));
    row.style.order = pinned ? "0" : "1";
    row.hidden = state.only && !pinned && state.pinned.size > 0;
  }
}

async function show(step) {
  state.step = step;
  slider.value = String(state.steps.indexOf(step));
  said.textContent = step === state.steps[0] ? `${formatNumber(step)}${step === 0 ? " (the base)" : ""}` : `${formatNumber(step)} of ${formatNumber(job.steps)}`;
  slider.setAttribute("aria-valuetext", `step ${step}`);
  if (!state.follows) view.set("step", String(step));
  const address = await sheetOf(step);
  await measure(address); // so that it changes in one go
  if (state.step !== step) return;
  grid.style.setProperty("--now", `url("${address}")`);
  grid.dataset.step = String(step);
  for (const figure of grid.querySelectorAll("figure")) {
    figure.querySelector(".now").setAttribute("aria-label", `Step ${step}, ${figure.dataset.prompt}, noise ${Number(figure.dataset.column) + 1}`);
  }
  await showScores(step);
}

async function sheetOf(step) {
  if (!sheets.has(step)) sheets.set(step, imageAddress(`${path}/artifacts/samples/step-${step}.png`));
  for (const [old, address] of sheets) {
    if (sheets.size <= MAX_SHEETS) break;
    if (old === state.steps[0] || old === step) continue;
    sheets.delete(old);
    address.then((url) => url.startsWith("blob:") && URL.revokeObjectURL(url));
  }
  return sheets.get(step);
}

function measure(address) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve({ width: image.naturalWidth, height: image.naturalHeight });
    image.onerror = () => reject(new ApiError(404, { detail: "The images cannot be read." }));
    image.src = address;
  });
}

// ---- scores beneath the images ----

async function scoresOf(step) {
  if (!scores.has(step)) scores.set(step, request(`${path}/artifacts/evaluation/step-${step}.json`).then((found) => found.prompts.slice(0, cell.prompts.length).map((each) => each.scores), () => null));
  return scores.get(step);
}

async function showScores(step) {
  const [before, now] = await Promise.all([scoresOf(state.steps[0]), scoresOf(step)]);
  if (state.step !== step || !now) return;
  for (const figure of grid.querySelectorAll("figure")) {
    const [row, column] = [Number(figure.dataset.row), Number(figure.dataset.column)];
    const lines = (job.rewards ?? []).map((reward) => {
      const [from, to] = [before, now].map((each) => each?.[row]?.[reward.name]?.[column] ?? null);
      if (to === null) return null;
      const sign = from === null || formatNumber(from, 2) === formatNumber(to, 2) ? "" : to > from ? " ▲" : " ▼";
      return h("span", {}, `${reward.name} `, from === null || step === state.steps[0] ? "" : h("span", { class: "muted" }, `${formatNumber(from, 2)} → `), h("strong", {}, formatNumber(to, 2)), step === state.steps[0] ? "" : sign);
    });
    figure.querySelector(".scores").replaceChildren(...lines.filter(Boolean));
  }
}
