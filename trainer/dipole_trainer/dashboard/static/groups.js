// What a job is taught: a step's groups, each in the order that every reward gave it, with what attracted and repelled.

import { actionButtons } from "./actions.js";
import { begin, followEvents, imageAddress, request, ROOT } from "./api.js";
import { formatNumber, h, save, toCsv, view } from "./dom.js";
import { jobHead } from "./job_head.js";
import { isHeldOut, rewardsAt } from "./reward_roles.js";

const RELOAD_MS = 1000;
const id = decodeURIComponent(location.pathname.split("/").at(-2));
const path = `v1/fine_tuning/jobs/${encodeURIComponent(id)}`;
const main = document.getElementById("main");

const head = jobHead("groups");
const slider = h("input", { type: "range", min: "0", step: "1", id: "step", oninput: () => choose(Number(slider.value)) });
const said = h("output", { for: "step", class: "nowrap" });
const previous = h("button", { type: "button", "aria-label": "Previous step", onclick: () => choose(shown.step - 1) }, "‹");
const next = h("button", { type: "button", "aria-label": "Next step", onclick: () => choose(shown.step + 1) }, "›");
const newest = h("button", { type: "button", onclick: () => choose(null) }, "Newest");
const tools = h("div", { class: "card tools gallery-tools", hidden: true }, h("label", { class: "inline wide" }, "Step", slider), said, h("span", { class: "actions" }, previous, next, newest));
const key = h("p", { class: "muted small group-key", hidden: true }, h("span", { class: "sign attracts" }, "+"), " attracted: the model is drawn to it. ", h("span", { class: "sign repels" }, "−"), " repelled. Best to the left, worst to the right.");
const list = h("div", { class: "stack groups" });
const more = h("button", { type: "button", hidden: true, onclick: loadMore }, "More groups of this step");
let job = null;
let shown = { step: null, first: 0, last: 0 };
let wanted = view.get("step", null) === null ? null : Number(view.get("step", "0")); // null: the newest, as it comes
let cursor = 0;
let asked = 0;
let addresses = [];

begin(start, `There is no job ${id}.`);

async function start() {
  job = await request(path);
  document.title = `Groups of ${job.suffix ?? job.model} · Dipole`;
  const showHead = () => head.show(job, actionButtons(job, ROOT, (then) => { job = then; showHead(); }));
  const refresh = async () => { job = await request(path); showHead(); };
  main.append(head.element, tools, key, list, h("div", { class: "actions" }, more));
  showHead();
  const metrics = await request(`${path}/metrics?points=1`);
  await load();
  let waiting = null;
  followEvents(id, metrics.cursor, (events) => {
    if (events.some((event) => !["step", "evaluating"].includes(event.kind))) refresh();
    if (events.some((event) => event.kind === "step")) waiting ??= setTimeout(() => { waiting = null; wanted === null ? load() : learnSpan(); }, RELOAD_MS);
  }, refresh);
}

function choose(step) {
  wanted = step === null ? null : Math.min(shown.last, Math.max(shown.first, step));
  view.set("step", wanted === null ? null : String(wanted));
  if (wanted !== null) {
    shown.step = wanted;
    showStep(wanted);
  }
  load();
}

function showStep(step) {
  slider.value = String(step);
  slider.setAttribute("aria-valuetext", `step ${step}`);
  said.textContent = `${formatNumber(step)} of ${formatNumber(shown.last)}`;
  previous.disabled = step <= shown.first;
  next.disabled = step >= shown.last;
}

function takeSpan(page) {
  shown = { step: page.step, first: page.first_step, last: page.last_step };
  slider.min = String(page.first_step);
  slider.max = String(page.last_step);
}

async function learnSpan() {
  const page = await request(`${path}/groups?limit=1`);
  takeSpan({ ...page, step: shown.step });
  showStep(shown.step);
}

/** The wanted step's groups; whatever is asked later overtakes it. */
async function load() {
  const turn = (asked += 1);
  const page = await request(`${path}/groups${wanted === null ? "" : `?step=${wanted}`}`);
  if (turn !== asked) return;
  const none = page.step === null;
  tools.hidden = key.hidden = none;
  if (none) {
    list.replaceChildren(h("div", { class: "empty card" }, h("p", {}, "No group was ranked yet. A job that trains on pairs or on a recording asks no reward, and has none.")));
    return;
  }
  takeSpan(page);
  showStep(page.step);
  const cards = await Promise.all(page.data.map(groupCard));
  if (turn !== asked) return;
  for (const address of addresses) if (address.startsWith("blob:")) URL.revokeObjectURL(address);
  addresses = cards.map((card) => card.address).filter(Boolean);
  list.dataset.step = String(page.step);
  list.replaceChildren(...cards.map((card) => card.element));
  if (!page.data.length) list.replaceChildren(h("p", { class: "muted" }, "No group of this step was ranked."));
  showMore(page);
}

function showMore(page) {
  more.hidden = !page.has_more;
  cursor = page.data.at(-1)?.cursor ?? 0;
}

async function loadMore() {
  const turn = asked;
  const page = await request(`${path}/groups?step=${shown.step}&after=${cursor}`);
  const cards = await Promise.all(page.data.map(groupCard));
  if (turn !== asked) return;
  addresses.push(...cards.map((card) => card.address).filter(Boolean));
  list.append(...cards.map((card) => card.element));
  showMore(page);
}

// ---- a group ----

async function groupCard(group) {
  const address = group.preview ? await imageAddress(group.preview).catch(() => null) : null;
  const rewards = rewardsAt(job, group.step);
  const weights = new Map(rewards.map((reward) => [reward.name, reward.weight]));
  const heldOut = new Set(rewards.filter(isHeldOut).map((reward) => reward.name));
  const names = Object.keys(group.rewards).sort((a, b) => (weights.get(b) ?? 0) - (weights.get(a) ?? 0));
  const role = roles(group.order);
  const rows = names.map((name) => ({ name, held: heldOut.has(name), scores: group.rewards[name].scores, failure: group.rewards[name].failure }));
  const trained = rows.filter((row) => !row.held);
  if (group.order.total.length && (trained.length > 1 || job.method?.type === "random")) rows.unshift({ name: job.method?.type === "random" ? "shuffled" : "combined", scores: group.order.total });
  const element = h("section", { class: "card stack group", "data-group": group.group, "aria-label": group.prompt },
    h("div", { class: "head" }, h("h2", {}, group.prompt), h("span", { class: "muted small" }, `group ${group.index}, ${group.seeds.length} candidates`)),
    group.order.skipped ? h("p", { class: "notice warn" }, `Skipped, and not trained on: ${group.order.skipped}.`) : null,
    group.order.unknown ? h("p", { class: "notice" }, `What attracted and repelled is not known: ${group.order.unknown}.`) : null,
    rows.map((row) => orderRow(row, group, role, address)),
    h("details", {}, h("summary", {}, "Table"), scoreTable(group, rows, role)));
  element.addEventListener("pointerover", (event) => highlight(element, event.target.closest("[data-candidate]")?.dataset.candidate));
  element.addEventListener("pointerleave", () => highlight(element, undefined));
  return { element, address };
}

function roles(order) {
  const found = new Map();
  order.positives.forEach((row) => found.set(row, "attracts"));
  order.negatives.forEach((row) => found.set(row, "repels"));
  return found;
}

function orderRow(row, group, role, address) {
  const label = h("div", { class: "order-name" }, h("h3", {}, row.name), row.held ? h("span", { class: "tag held" }, "held out") : null);
  if (row.failure) return h("div", { class: "order" }, label, h("p", { class: "muted" }, `Left out: ${row.failure}`));
  const places = row.scores.map((score, candidate) => ({ score, candidate })).sort((a, b) => (b.score ?? -Infinity) - (a.score ?? -Infinity) || a.candidate - b.candidate);
  return h("div", { class: "order" }, label, h("ol", { class: "candidates", "data-order": row.name, tabindex: "0", "aria-label": `Candidates in the order of ${row.name}` }, places.map(({ score, candidate }, place) => {
    const is = role.get(candidate);
    const tile = h("div", { class: "tile", role: "img", "aria-label": `Candidate ${candidate + 1}${is === "attracts" ? ", attracted" : is === "repels" ? ", repelled" : ""}` });
    if (address) {
      tile.style.backgroundImage = `url("${address}")`;
      tile.style.backgroundSize = `${group.seeds.length * 100}% 100%`;
      tile.style.backgroundPosition = `${group.seeds.length > 1 ? (candidate / (group.seeds.length - 1)) * 100 : 0}% 0`;
    } else {
      tile.append(h("span", { "aria-hidden": "true" }, `${candidate + 1}`));
    }
    return h("li", { class: is ?? "", "data-candidate": String(candidate), "data-place": String(place) }, tile,
      h("span", { class: "under-tile" }, is ? h("span", { class: `sign ${is}`, "aria-hidden": "true" }, is === "attracts" ? "+" : "−") : null, h("span", {}, score === null ? "none" : formatNumber(Math.round(score * 100) / 100, 3))));
  })));
}

function highlight(element, candidate) {
  for (const item of element.querySelectorAll("[data-candidate]")) item.classList.toggle("same", item.dataset.candidate === candidate);
}

function scoreTable(group, rows, role) {
  const heads = ["candidate", "seed", ...rows.map((row) => row.name), "role"];
  const lines = group.seeds.map((seed, candidate) => [candidate + 1, String(seed), ...rows.map((row) => row.scores[candidate] ?? null), { attracts: "attracted", repels: "repelled" }[role.get(candidate)] ?? ""]);
  return h("div", { class: "stack" }, h("div", { class: "scroll", tabindex: "0" }, h("table", {},
    h("caption", { class: "sr" }, `Scores of the candidates for ${group.prompt}`),
    h("thead", {}, h("tr", {}, heads.map((name, index) => h("th", { scope: "col", class: index > 0 && index < heads.length - 1 ? "number" : null }, name)))),
    h("tbody", {}, lines.map((line) => h("tr", {}, line.map((value, index) => h(index ? "td" : "th", { scope: index ? null : "row", class: index > 0 && index < heads.length - 1 ? "number" : null }, typeof value === "number" ? formatNumber(value) : value ?? "none"))))))),
    h("div", { class: "actions" }, h("button", { class: "quiet", type: "button", onclick: () => save(`${group.group}.csv`, toCsv([heads, ...lines]), "text/csv") }, "CSV"),
      h("button", { class: "quiet", type: "button", onclick: () => save(`${group.group}.json`, JSON.stringify(group, null, 1), "application/json") }, "JSON")));
}
