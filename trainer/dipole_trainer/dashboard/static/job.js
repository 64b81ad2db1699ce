// A job: what it is doing, its curves by reward, events as they happen, configuration, checkpoints.

import { actionButtons, jobName } from "./actions.js";
import { begin, downloadLink, eventNumber, followEvents, hasKey, request, ROOT, TERMINAL } from "./api.js";
import { ChartList } from "./chart_list.js";
import { JobFigures } from "./curves.js";
import { formatBytes, formatNumber, formatSeconds, h, replace, segments, timeElement, view } from "./dom.js";
import { jobHead } from "./job_head.js";
import { JobSelect } from "./job_select.js";
import { describeRole, rewardsAt } from "./reward_roles.js";
import { describeChange, weightsForm } from "./weights_form.js";

const MAX_EVENTS = 200; // rows that a page keeps, however long it is open
const DRAW_MS = 250;
const REPORT = "export/report.html";
const JOB_EVENTS = new Set(["step", "evaluating"]); // events after which the job itself is much the same
const id = decodeURIComponent(location.pathname.split("/").at(-1));
const path = `v1/fine_tuning/jobs/${encodeURIComponent(id)}`;
const main = document.getElementById("main");

const options = {
  x: view.get("x", "step"),
  scale: view.get("scale", "raw"),
  smooth: Math.min(0.98, Math.max(0, Number(view.get("smooth", "0.6")) || 0)),
};

let job = null;
let figures = null;
const head = jobHead("job");
const facts = h("dl", { class: "facts" });
const notices = h("div", { class: "stack" });
const curves = h("div", { class: "columns" });
const charts = new ChartList(curves, "job");
const changed = h("p", { class: "muted small" });
const weights = weightsForm(path, (next) => { job = next; figures.job = job; showJob(); draw(); });
const reasons = h("div", { class: "columns" });
const events = h("ol", { class: "events", tabindex: "0", "aria-label": "Events, newest first" });
const olderEvents = h("button", { class: "quiet", type: "button", hidden: true, onclick: loadOlderEvents }, "Older events");
const checkpoints = h("div", { class: "stack" });
const config = h("div", { class: "stack" });
const otherJob = new JobSelect("other", { none: "no other job", onChoose: compareTo });

begin(start, `There is no job ${id}.`);

async function start() {
  const [found, metrics, recent] = await Promise.all([request(path), request(`${path}/metrics`), request(`${path}/events?limit=50`)]);
  job = found;
  figures = new JobFigures(job, metrics);
  main.append(head.element, h("section", { class: "card", "aria-label": "Now" }, facts), notices,
    h("section", { class: "stack", "aria-labelledby": "curves-title" },
      h("div", { class: "head" }, h("h2", { id: "curves-title" }, "Curves"), curveTools()), changed, curves, reasons),
    h("div", { class: "columns" },
      h("section", { class: "card stack", "aria-labelledby": "events-title" }, h("h2", { id: "events-title" }, "Events"), events, olderEvents),
      h("section", { class: "card stack", "aria-labelledby": "checkpoints-title" }, h("h2", { id: "checkpoints-title" }, "Checkpoints and files"), checkpoints)),
    weights.element,
    h("section", { class: "card stack", "aria-labelledby": "config-title" }, h("h2", { id: "config-title" }, "Configuration"), config));
  events.append(...recent.data.map(eventRow));
  olderEvents.hidden = !recent.has_more;
  showJob();
  draw();
  showConfig(null);
  otherJob.leaveOut([id]);
  await Promise.all([showCheckpoints(), otherJob.load()]);
  // the list and the curves may differ by what came between the two answers; the stream has it all
  const newest = recent.data.length ? eventNumber(recent.data[0]) : 0;
  const first = Math.min(newest, metrics.cursor);
  followEvents(id, first, (fresh) => take(fresh, { shown: newest, drawn: metrics.cursor }), refreshJob);
}

function curveTools() {
  const smooth = h("input", { type: "range", min: "0", max: "0.98", step: "0.02", id: "smooth", oninput: (event) => choose("smooth", Number(event.target.value)) });
  smooth.value = String(options.smooth);
  return h("div", { class: "tools" },
    segments("Values", { raw: "Raw", normalised: "Normalised" }, options.scale, (value) => choose("scale", value)),
    segments("Horizontal axis", { step: "Step", time: "Wall clock" }, options.x, (value) => choose("x", value)),
    h("label", { class: "inline small" }, "Smoothing", smooth));
}

function choose(name, value) {
  options[name] = value;
  view.set(name, String(value));
  draw();
}

// ---- events as they come ----

let drawing = null;
let asking = null;

function take(fresh, { shown, drawn }) {
  for (const event of fresh) {
    if (eventNumber(event) > drawn) figures.add(event);
    if (eventNumber(event) > shown) events.prepend(eventRow(event));
  }
  while (events.children.length > MAX_EVENTS) {
    events.lastElementChild.remove();
    olderEvents.hidden = false;
  }
  const steps = fresh.filter((event) => event.kind === "step");
  if (steps.length) Object.assign(job, { step: steps.at(-1).data.step, estimated_finish: Date.now() / 1000 + steps.at(-1).data.eta_s });
  drawing ??= setTimeout(() => { drawing = null; showJob(); draw(); }, DRAW_MS);
  if (fresh.some((event) => !JOB_EVENTS.has(event.kind))) asking ??= setTimeout(() => { asking = null; refreshJob(); }, DRAW_MS);
}

async function refreshJob() {
  job = await request(path);
  figures.job = job;
  showJob();
  draw();
  await showCheckpoints();
}

function eventRow(event) {
  const sign = { warn: "⚠", error: "✕" }[event.level];
  return h("li", { "data-kind": event.kind, "data-event": event.id }, timeElement(event.created_at),
    h("span", { class: event.level }, sign ? h("span", { class: "level", title: event.level }, sign) : null, event.message));
}

async function loadOlderEvents() {
  const found = await request(`${path}/events?limit=100&after=${events.lastElementChild.dataset.event}`);
  events.append(...found.data.map(eventRow));
  while (events.children.length > MAX_EVENTS) events.firstElementChild.remove();
  olderEvents.hidden = !found.has_more;
}

// ---- what it is doing ----

function showJob() {
  document.title = `${jobName(job)} · Dipole`;
  weights.show(job);
  head.show(job, actionButtons(job, ROOT, (next) => { job = next; showJob(); }));
  const step = figures.steps.at(-1);
  const evaluation = figures.evaluations.at(-1);
  const left = TERMINAL.has(job.status) ? null : job.estimated_finish && job.estimated_finish - Date.now() / 1000;
  const took = job.started_at && (job.finished_at ?? Date.now() / 1000) - job.started_at;
  const rows = [
    ["Progress", `${formatNumber(job.step)} of ${formatNumber(job.steps)}`, h("progress", { max: String(job.steps), value: String(job.step), "aria-label": `${job.step} of ${job.steps} steps` })],
    left ? ["Left", formatSeconds(left)] : ["Took", took ? formatSeconds(took) : "–"],
    ...rewardsAt(job, Infinity).map((reward) => [
      `${reward.name}, ${describeRole(reward)}`,
      formatNumber(evaluation?.scores?.[reward.name]?.mean ?? step?.rewards?.[reward.name] ?? null, 3),
      changeText(evaluation?.scores?.[reward.name]?.difference) ?? (evaluation?.scores?.[reward.name] ? "the base, on held-out prompts" : "on training prompts"),
    ]),
    ["Diversity", evaluation?.diversity_ratio ? `${Math.round(evaluation.diversity_ratio * 100)} %` : "–", "of the base's"],
    ["Images", step ? `${formatNumber(step.images_per_s, 3)} /s` : "–"],
    step?.gpu_gib ? ["GPU memory", `${formatNumber(step.gpu_gib, 3)} GiB`, "at most"] : null,
  ].filter(Boolean);
  replace(facts, rows.map(([name, value, more]) => h("div", {}, h("dt", {}, name), h("dd", {}, value, more instanceof Node ? more : more ? h("small", {}, more) : null))));
  replace(notices,
    job.error ? h("div", { class: "notice bad", role: "alert" }, h("strong", {}, "The job failed. "), job.error.message) : null,
    job.waiting_for ? h("div", { class: "notice warn", role: "status" }, h("strong", {}, `Waiting for ${job.waiting_for.param ?? "the store of its files"}. `), job.waiting_for.message) : null);
}

function changeText(difference) {
  if (!difference) return null;
  const sign = (value) => `${value > 0 ? "+" : value < 0 ? "−" : "±"}${formatNumber(Math.abs(value), 3)}`;
  const half = difference.low === null ? "" : ` ± ${formatNumber((difference.high - difference.low) / 2, 2)}`;
  return `${sign(difference.mean)}${half} against the base`;
}

// ---- curves ----

function draw() {
  const { x, smooth, scale } = options;
  const wanted = [];
  const add = (key, title, series, more = {}) => series.length && wanted.push({ key, title, series, ...more });
  if (scale === "normalised") {
    const note = "0 is the start; 1 is the spread of a group's candidates in the first steps. So rewards of any scale compare.";
    add("n-train", "All rewards, training prompts, normalised", figures.normalisedSeries(x, smooth, "training"), { note });
    add("n-eval", "All rewards, held-out prompts, against the base", figures.normalisedSeries(x, smooth, "evaluation"), { note: `${note} Bands: 95 % over prompts.` });
  } else {
    const tag = (name) => (figures.isHeldOut(name) ? h("span", { class: "tag held" }, "held-out reward") : h("span", { class: "tag" }, "trained"));
    for (const name of figures.rewardNames()) {
      add(`r-${name}`, name, figures.rewardSeries(name, x, smooth), { tag: tag(name), note: "Mean score of a step's groups, and of the evaluation's prompts." });
    }
    for (const name of figures.rewardNames()) {
      add(`p-${name}`, `Parts of ${name}`, figures.partSeries(name, x), { tag: tag(name), note: "On held-out prompts, with 95 % over prompts; watched, never trained on." });
    }
  }
  add("spread", "Spread in a group", figures.spreadSeries(x, smooth), { note: "Standard deviation of the candidates' scores: what there is to learn from." });
  add("diversity", "Diversity, of the base's", figures.diversityShare(x), { note: "Mean distance between a prompt's images in φ, as a share of the base's. It falls when images become alike." });
  for (const series of figures.diversitySeries(x)) { // each in a unit of its own
    add(`d-${series.key}`, `Diversity: ${series.label}`, [series], { note: "Between the images of a prompt, with 95 % over prompts." });
  }
  add("loss", "Loss and its drifts", figures.lossSeries(x, smooth));
  add("decoder", "Tiny decoder against the VAE", figures.decoderSeries(x), { note: "Kendall's τ of the two orders, and the share of chosen candidates that both have. An event says when the mean τ of four checks is below 0.7." });
  add("skipped", "Groups skipped, candidates not finite", [...figures.plainSeries("skipped", "groups skipped", x, 0), ...figures.plainSeries("not_finite", "candidates not finite", x, 0)], { note: "In each step." });
  add("lr", "Learning rate", figures.plainSeries("lr", "learning rate", x, 0));
  add("rate", "Images a second", figures.plainSeries("images_per_s", "images/s", x, smooth));
  add("phases", "Time by phase", figures.phaseSeries(x, smooth), { note: "Seconds of each step." });
  add("memory", "GPU memory", figures.plainSeries("gpu_gib", "GiB at most", x, 0));
  charts.show(wanted, x, figures.weightChanges(x));
  const begun = (job.weight_changes ?? []).filter((each) => each.step !== null);
  replace(changed, begun.length ? `Dashed lines: weights changed (${begun.map((each) => describeChange(each)).join("; ")}).` : "");
  if (!wanted.length) replace(curves, h("p", { class: "muted" }, "No figures yet: the first come with the first evaluation or step."));
  else for (const child of [...curves.children]) if (child.tagName === "P") child.remove();
  replace(reasons, reasonTable("Why groups were skipped", figures.skipped), reasonTable("Why rewards were left out", figures.failures));
}

function reasonTable(title, counts) {
  if (!counts.size) return null;
  const rows = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 20);
  return h("div", { class: "card stack" }, h("h3", {}, title), h("div", { class: "scroll", tabindex: "0" }, h("table", {},
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Reason"), h("th", { scope: "col", class: "number" }, "Groups"))),
    h("tbody", {}, rows.map(([reason, count]) => h("tr", {}, h("td", {}, reason), h("td", { class: "number" }, formatNumber(count))))))));
}

// ---- checkpoints and files ----

async function showCheckpoints() {
  const [kept, files] = await Promise.all([request(`${path}/checkpoints?limit=100`), request(`${path}/artifacts?under=export`)]);
  replace(checkpoints,
    kept.data.length ? h("div", { class: "scroll", tabindex: "0" }, h("table", {},
      h("caption", { class: "sr" }, "Checkpoints, newest first"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Step"), h("th", { scope: "col" }, "Written"), h("th", { scope: "col" }, "Weights"))),
      h("tbody", {}, kept.data.map((each) => h("tr", {}, h("th", { scope: "row" }, formatNumber(each.step_number)), h("td", {}, timeElement(each.created_at)),
        h("td", {}, downloadLink(each.download, `${id}-step-${each.step_number}.zip`, job.tune === "full" ? "Download weights" : "Download LoRA"))))))) :
      h("p", { class: "muted" }, "No checkpoint yet."),
    files.data.some((file) => file.path === REPORT) ? h("p", {}, reportLink(files.data.find((file) => file.path === REPORT)), h("span", { class: "muted small" }, " what came of it on one page, to keep or to send")) : null,
    files.data.length ? h("h3", {}, "Export") : null,
    files.data.length ? h("div", { class: "scroll", tabindex: "0" }, h("table", {}, h("caption", { class: "sr" }, "Exported files"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "File"), h("th", { scope: "col", class: "number" }, "Size"))),
      h("tbody", {}, files.data.map((file) => h("tr", {}, h("td", {}, downloadLink(file.url, file.path.split("/").at(-1), file.path.replace("export/", ""))), h("td", { class: "number nowrap" }, formatBytes(file.bytes))))))) : null);
}

/** Opens in a tab of its own; where the server wants a key, which a link cannot send, it is saved and opened from disk. */
function reportLink(file) {
  const link = downloadLink(file.url, `${id}-report.html`, hasKey() ? "Save the report" : "Open the report");
  if (!hasKey()) {
    link.removeAttribute("download");
    link.target = "_blank";
    link.rel = "noopener";
  }
  return link;
}

// ---- configuration ----

const SHOWN_ABOVE = new Set(["id", "weight_changes", "object", "status", "desired", "error", "waiting_for", "step", "created_at", "started_at", "finished_at", "estimated_finish", "fine_tuned_model", "result_files", "organization_id", "trained_tokens", "integrations", "hyperparameters"]);

function flatten(value, prefix = "") {
  if (value === null || value === undefined) return [];
  if (Array.isArray(value) && value.every((each) => typeof each !== "object")) return [[prefix, value.join(", ")]];
  if (typeof value === "object") {
    return Object.entries(value).flatMap(([key, each]) => flatten(each, Array.isArray(value) ? `${prefix}[${each?.name ?? key}]` : prefix ? `${prefix}.${key}` : key));
  }
  return [[prefix, typeof value === "number" ? formatNumber(value, 6) : String(value)]];
}

function showConfig(other) {
  const plain = (each) => new Map(flatten(Object.fromEntries(Object.entries(each).filter(([key]) => !SHOWN_ABOVE.has(key)))));
  const mine = plain(job);
  const theirs = other ? plain(other) : null;
  const names = [...new Set([...mine.keys(), ...(theirs?.keys() ?? [])])];
  const differs = (name) => theirs && mine.get(name) !== theirs.get(name);
  const shown = theirs ? names.filter(differs) : names;
  config.replaceChildren(h("div", { class: "tools" }, h("label", { class: "inline", for: "other" }, "Difference to", otherJob.element)),
    theirs === null ? h("dl", { class: "fields" }, shown.map((name) => h("div", {}, h("dt", {}, name), h("dd", {}, mine.get(name) || "none")))) :
      shown.length === 0 ? h("p", {}, "The two jobs are configured alike.") : h("div", { class: "scroll", tabindex: "0" }, h("table", { class: "config" },
        h("caption", { class: "sr" }, "Fields that differ"),
        h("thead", {}, h("tr", {}, ["Field", jobName(job), `${jobName(other)} (${other.id})`].map((head) => h("th", { scope: "col" }, head)))),
        h("tbody", {}, shown.map((name) => h("tr", {}, h("td", { class: "mono" }, name), h("td", {}, mine.get(name) ?? "–"), h("td", {}, theirs.get(name) ?? "–")))))));
}

async function compareTo(otherId) {
  showConfig(otherId ? await request(`v1/fine_tuning/jobs/${encodeURIComponent(otherId)}`) : null);
  otherJob.element.focus();
}
