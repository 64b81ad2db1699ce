// Several jobs over each other, by step or wall clock. The address says all of it: a link reproduces the view.

import { jobLink, jobName } from "./actions.js";
import { ApiError, request, repeatWhileVisible, ROOT, TERMINAL } from "./api.js";
import { ChartList } from "./chart_list.js";
import { JobFigures } from "./curves.js";
import { formatNumber, h, replace, save, segments, stateElement, toCsv, view } from "./dom.js";
import { JobSelect } from "./job_select.js";

const MAX_JOBS = 6; // as many colours and dashes as are told apart
const REFRESH_MS = 5000;
const POINTS = 600;
const main = document.getElementById("main");

const options = { x: view.get("x", "step"), smooth: Math.min(0.98, Math.max(0, Number(view.get("smooth", "0.6")) || 0)) };
let chosen = [...new Set(view.get("jobs", "").split(",").filter(Boolean))].slice(0, MAX_JOBS);
const loaded = new Map(); // id → JobFigures

const add = new JobSelect("add", {
  none: "choose …",
  describe: (job) => `${jobName(job)} · ${job.method?.type ?? ""} · seed ${job.seed} · ${job.id}`,
  onChoose: (id) => choose([...chosen, id]),
});
const smooth = h("input", { type: "range", min: "0", max: "0.98", step: "0.02", id: "smooth", oninput: () => { options.smooth = Number(smooth.value); view.set("smooth", smooth.value); draw(); } });
smooth.value = String(options.smooth);
const copied = h("span", { class: "small muted", role: "status" });
const list = h("ul", { class: "chosen", "aria-label": "Compared jobs" });
const fault = h("div", { class: "notice bad", role: "alert", hidden: true });
const summary = h("section", { class: "card stack", "aria-labelledby": "summary-title", hidden: true });
const curves = h("div", { class: "columns" });
const charts = new ChartList(curves, "compare");
const empty = h("div", { class: "empty card" }, h("p", {}, "Choose jobs to lay their curves over each other."));

main.append(
  h("div", { class: "head" }, h("h1", {}, "Compare"), h("div", { class: "actions" }, copied, h("button", { type: "button", onclick: copyLink }, "Copy link"))),
  h("div", { class: "card stack" }, list, h("div", { class: "tools" },
    h("label", { class: "inline small", for: "add" }, "Add a job", add.element),
    segments("Horizontal axis", { step: "Step", time: "Wall clock" }, options.x, (value) => { options.x = value; view.set("x", value); draw(); }),
    h("label", { class: "inline small" }, "Smoothing", smooth))),
  fault, summary, curves, empty);
repeatWhileVisible(load, REFRESH_MS);

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    copied.textContent = "Copied.";
  } catch {
    copied.textContent = "The address of this page is the link.";
  }
}

function choose(ids) {
  chosen = [...new Set(ids.filter(Boolean))].slice(0, MAX_JOBS);
  view.set("jobs", chosen.join(","));
  return load();
}

async function load() {
  const wanted = chosen.filter((id) => !loaded.has(id) || !TERMINAL.has(loaded.get(id).job.status));
  const missing = [];
  await Promise.all([add.load(), ...wanted.map(async (id) => {
    try {
      const path = `v1/fine_tuning/jobs/${encodeURIComponent(id)}`;
      const [job, metrics] = await Promise.all([request(path), request(`${path}/metrics?points=${POINTS}`)]);
      loaded.set(id, new JobFigures(job, metrics));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      missing.push(error.status === 404 ? `There is no job ${id}.` : error.message);
    }
  })]);
  fault.hidden = !missing.length;
  fault.textContent = missing.join(" ");
  for (const id of loaded.keys()) if (!chosen.includes(id)) loaded.delete(id);
  add.leaveOut(chosen);
  add.element.disabled = chosen.length >= MAX_JOBS;
  draw();
}

function shown() {
  return chosen.map((id) => loaded.get(id)).filter(Boolean);
}

/** A job's name, told apart from another's of the same. */
function label(figures) {
  const name = jobName(figures.job);
  return shown().filter((other) => jobName(other.job) === name).length > 1 ? `${name} ${figures.job.id.slice(-4)}` : name;
}

function draw() {
  const all = shown();
  replace(list, all.map((figures) => h("li", {}, h("a", { href: new URL(jobLink(figures.job), ROOT).href }, label(figures)), stateElement(figures.job.status),
    h("button", { class: "quiet", type: "button", "aria-label": `Remove ${label(figures)}`, "data-remove": figures.job.id }, "✕"))));
  list.onclick = (event) => {
    const id = event.target.closest("[data-remove]")?.dataset.remove;
    if (id) choose(chosen.filter((each) => each !== id));
  };
  empty.hidden = all.length > 0;
  summary.hidden = !all.length;
  drawSummary(all);
  drawCurves(all);
}

function drawCurves(all) {
  const { x, smooth: weight } = options;
  const wanted = [];
  const over = (key, title, read, more = {}) => {
    const parts = all.flatMap((figures, index) => read(figures).map((series) => ({ ...series, key: `${figures.job.id} ${series.key}`, label: label(figures), colour: index + 1 })));
    if (parts.length) wanted.push({ key, title, series: parts, ...more });
  };
  const one = (series) => (series ? [series] : []);
  for (const name of new Set(all.flatMap((figures) => figures.rewardNames()))) {
    const held = all.every((figures) => !figures.rewardNames().includes(name) || figures.isHeldOut(name));
    const tag = () => h("span", { class: `tag${held ? " held" : ""}` }, held ? "held out" : "trained by one or more");
    over(`e-${name}`, `${name}, held-out prompts`, (figures) => one(figures.ofEvaluations(name, name, (point) => point.scores?.[name], x)), { tag: tag(), note: "Mean over prompts, with 95 %." });
    over(`t-${name}`, `${name}, training prompts`, (figures) => one(figures.ofSteps(name, name, (point) => point.rewards?.[name], x, { smooth: weight })), { tag: tag(), note: "Mean of each step's groups." });
  }
  over("diversity", "Diversity, of the base's", (figures) => figures.diversityShare(x));
  over("loss", "Loss", (figures) => figures.plainSeries("loss", "loss", x, weight), { note: "Losses of different methods do not compare." });
  over("rate", "Images a second", (figures) => figures.plainSeries("images_per_s", "images/s", x, weight));
  charts.show(wanted, x);
}

/** What each job reached on held-out prompts at its last evaluation. */
function drawSummary(all) {
  const names = [...new Set(all.flatMap((figures) => figures.rewardNames()))];
  const heads = ["job", "method", "seed", "step", ...names, "diversity"];
  const value = (figure) => (figure?.mean === undefined ? null : figure);
  const lines = all.map((figures) => {
    const last = figures.evaluations.at(-1);
    return { job: figures.job, label: label(figures), step: last?.step ?? null, scores: names.map((name) => value(last?.scores?.[name])), ratio: last?.diversity_ratio ?? (last?.step === 0 ? 1 : null) };
  });
  const cell = (figure) => {
    if (!figure) return "–";
    const half = figure.low === null ? "" : ` ± ${formatNumber((figure.high - figure.low) / 2, 2)}`;
    const change = figure.difference ? h("span", { class: "muted small" }, ` (${figure.difference.mean > 0 ? "+" : ""}${formatNumber(figure.difference.mean, 2)} ± ${formatNumber((figure.difference.high - figure.difference.low) / 2, 2)})`) : null;
    return [`${formatNumber(figure.mean, 3)}${half}`, change];
  };
  const plain = () => lines.map((line) => [line.label, line.job.method?.type, line.job.seed, line.step, ...line.scores.map((figure) => figure?.mean ?? null), line.ratio]);
  replace(summary, h("div", { class: "head" }, h("h2", { id: "summary-title" }, "Last evaluation"), h("span", { class: "muted small" }, "held-out prompts, ± 95 %; in brackets the difference to the job's own base")),
    h("div", { class: "scroll", tabindex: "0" }, h("table", {}, h("thead", {}, h("tr", {}, heads.map((name, index) => h("th", { scope: "col", class: index > 1 ? "number" : null }, name)))),
      h("tbody", {}, lines.map((line) => h("tr", {}, h("th", { scope: "row" }, line.label), h("td", {}, line.job.method?.type ?? "–"), h("td", { class: "number" }, formatNumber(line.job.seed)), h("td", { class: "number" }, formatNumber(line.step)),
        line.scores.map((figure) => h("td", { class: "number nowrap" }, cell(figure))), h("td", { class: "number" }, line.ratio === null ? "–" : `${Math.round(line.ratio * 100)} %`)))))),
    h("div", { class: "actions" }, h("button", { class: "quiet", type: "button", "data-save": "csv" }, "CSV"), h("button", { class: "quiet", type: "button", "data-save": "json" }, "JSON")));
  summary.onclick = (event) => {
    const form = event.target.closest("[data-save]")?.dataset.save;
    if (form === "csv") save("comparison.csv", toCsv([heads, ...plain()]), "text/csv");
    if (form === "json") save("comparison.json", JSON.stringify(plain().map((line) => Object.fromEntries(line.map((each, index) => [heads[index], each]))), null, 1), "application/json");
  };
}
