// The first page: every job, newest first, with what it is doing.

import { actionButtons, jobLink, jobName } from "./actions.js";
import { request, repeatWhileVisible, ROOT, TERMINAL } from "./api.js";
import { formatNumber, formatSeconds, h, replace, stateElement, timeElement, view } from "./dom.js";
import { isHeldOut, rewardsAt } from "./reward_roles.js";

const PAGE = 20;
const main = document.getElementById("main");
const body = h("tbody");
const empty = h("div", { class: "empty card", hidden: true },
  h("p", {}, "No job yet. ", h("a", { href: "new" }, "The form"), " makes one, and so does ", h("code", {}, "dipole jobs create"), " or the demo."));
const table = h("div", { class: "card scroll", hidden: true }, h("table", { class: "jobs" },
  h("caption", { class: "sr" }, "Jobs, newest first"),
  h("thead", {}, h("tr", {}, ["Job", "State", "Progress", "Last figures", "Created", h("span", { class: "sr" }, "Actions")].map((head) => h("th", { scope: "col" }, head)))),
  body));
const older = h("button", { type: "button", hidden: true, onclick: () => turn([...trail, last]) }, "Older jobs");
const newer = h("button", { type: "button", hidden: true, onclick: () => turn(trail.slice(0, -1)) }, "Newer jobs");
const figures = new Map(); // id → newest figures; of jobs that have ended they are asked for once

let trail = view.get("after", "").split(",").filter(Boolean);
let last = null;

main.append(h("div", { class: "head" }, h("h1", {}, "Jobs"), h("div", { class: "actions" }, h("a", { class: "button primary", href: "new" }, "New job"))), empty, table, h("div", { class: "actions" }, newer, older));
const refresh = repeatWhileVisible(load, 3000);

function turn(next) {
  trail = next;
  view.set("after", trail.join(","));
  refresh();
}

async function load() {
  const page = await request(`v1/fine_tuning/jobs?limit=${PAGE}${trail.length ? `&after=${encodeURIComponent(trail.at(-1))}` : ""}`);
  last = page.last_id;
  older.hidden = !page.has_more;
  newer.hidden = !trail.length;
  empty.hidden = page.data.length > 0 || trail.length > 0;
  table.hidden = page.data.length === 0;
  show(page.data);
  for (const id of figures.keys()) if (!page.data.some((job) => job.id === id)) figures.delete(id);
  await Promise.all(page.data.filter((job) => !figures.get(job.id)?.final).map(async (job) => {
    const found = await request(`v1/fine_tuning/jobs/${encodeURIComponent(job.id)}/metrics?points=1`);
    figures.set(job.id, { final: TERMINAL.has(job.status), step: found.steps.data[0], evaluation: found.evaluations.data[0] });
  }));
  show(page.data);
}

/** Rows are kept by job, so that focus stays on a button while figures change. */
function show(jobs) {
  const rows = new Map([...body.children].map((row) => [row.id, row]));
  const wanted = jobs.map((job) => {
    const row = rows.get(job.id) ?? h("tr", { id: job.id }, Array.from({ length: 6 }, (_, index) => h(index ? "td" : "th", { scope: index ? null : "row" })));
    fillRow(row, job);
    return row;
  });
  if (wanted.length !== body.children.length || wanted.some((row, index) => body.children[index] !== row)) body.replaceChildren(...wanted);
}

function fillRow(row, job) {
  const [name, state, progress, numbers, created, actions] = row.children;
  replace(name, h("div", { class: "what" }, h("a", { href: jobLink(job) }, jobName(job)), h("span", { class: "muted small mono id" }, job.id)));
  replace(state, h("div", { class: "stack" }, stateElement(job.status), job.error ? h("span", { class: "error" }, job.error.message) : null,
    job.waiting_for ? h("span", { class: "waiting" }, `Waits for ${job.waiting_for.param ?? "the store of its files"}: ${job.waiting_for.message}`) : null));
  progress.className = "where";
  replace(progress, ...progressParts(job));
  replace(numbers, figuresElement(job));
  replace(created, timeElement(job.created_at));
  const asked = `${job.status} ${job.desired}`;
  if (actions.dataset.asked !== asked) {
    actions.dataset.asked = asked;
    actions.replaceChildren(h("div", { class: "actions" }, actionButtons(job, ROOT, (next) => { delete actions.dataset.asked; fillRow(row, next); refresh(); })));
  }
}

function progressParts(job) {
  const left = job.estimated_finish ? ` · ${formatSeconds(job.estimated_finish - Date.now() / 1000)} left` : "";
  return [
    h("progress", { max: String(job.steps ?? 1), value: String(job.step ?? 0), "aria-label": `${job.step} of ${job.steps} steps` }),
    h("span", { class: "small muted nowrap" }, `${formatNumber(job.step)} of ${formatNumber(job.steps)} steps${left}`),
  ];
}

function figuresElement(job) {
  const found = figures.get(job.id);
  if (!found?.step && !found?.evaluation) return h("span", { class: "muted" }, "none yet");
  const rows = rewardsAt(job, Infinity).flatMap((reward) => {
    const value = !isHeldOut(reward) ? (found.step?.rewards?.[reward.name] ?? found.evaluation?.scores?.[reward.name]?.mean) : (found.evaluation?.scores?.[reward.name]?.mean ?? found.step?.rewards?.[reward.name]);
    return [h("dt", {}, reward.name, isHeldOut(reward) ? " (held out)" : ""), h("dd", {}, formatNumber(value ?? null, 3))];
  });
  if (found.step) rows.push(h("dt", {}, "loss"), h("dd", {}, formatNumber(found.step.loss, 3)));
  return h("dl", { class: "figures" }, rows);
}
