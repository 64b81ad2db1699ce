// Reward endpoints: whether each answers now, how it has been answering, and what it says of itself.

import { ApiError, request, repeatWhileVisible } from "./api.js";
import { formatNumber, formatSeconds, formatTime, h, replace } from "./dom.js";

const PROBE_MS = 3000; // one that hangs is known after the check's five seconds: seen within ten in all
const main = document.getElementById("main");
const cards = h("div", { class: "columns" });
const probes = new Map(); // name → what the last probe said, and when
const queues = new Map(); // name → how groups wait at people; null for what is no rating service, which is asked once
const OUTCOMES = { completed: "answered", pending: "took it, answers later" };

main.append(h("div", { class: "head" }, h("h1", {}, "Endpoints")),
  h("p", { class: "muted" }, "Each endpoint of Dipole's protocol is asked every few seconds whether it is ready, while this page is seen. Others are asked to score two images for it, so they are asked by the button alone. Times and failures are of the last 200 requests of rank workers."), cards);
repeatWhileVisible(load, PROBE_MS);

async function load() {
  const rewards = (await request("v1/rewards")).data;
  const found = new Map();
  await Promise.all(rewards.flatMap((reward) => [
    request(`v1/rewards/${encodeURIComponent(reward.name)}/statistics`).then((each) => found.set(reward.name, each), (error) => found.set(reward.name, { problem: error.message })),
    reward.kind === "dipole" && probe(reward.name),
    reward.kind === "dipole" && readQueue(reward.name),
  ]));
  show(rewards, found);
}

async function readQueue(name) {
  if (queues.get(name) === null) return;
  try {
    const found = await request(`v1/rewards/${encodeURIComponent(name)}/rating_queue`);
    if (found.problem === null) queues.set(name, found.queue && found);
    else if (queues.get(name)) queues.set(name, { ...queues.get(name), problem: found.problem });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error; // the probe tells of it
  }
}

async function probe(name) {
  const at = Date.now() / 1000;
  try {
    probes.set(name, { at, ...(await request(`v1/rewards/${encodeURIComponent(name)}/check`, { method: "POST" })) });
  } catch (error) {
    probes.set(name, { at, ok: false, problem: error.message });
  }
}

function show(rewards, statistics) {
  if (!rewards.length) {
    cards.replaceChildren(h("div", { class: "empty card" }, h("p", {}, "No endpoint is registered. ", h("code", {}, "dipole rewards register"), " registers one, and so does a file (", h("code", {}, "DIPOLE_REWARDS_FILE"), ").")));
    return;
  }
  const present = new Map([...cards.children].map((card) => [card.dataset.endpoint, card]));
  const wanted = rewards.map((reward) => present.get(reward.name) ?? newCard(reward));
  if (wanted.length !== cards.children.length || wanted.some((card, index) => cards.children[index] !== card)) cards.replaceChildren(...wanted);
  rewards.forEach((reward, index) => fill(wanted[index], reward, statistics.get(reward.name)));
}

function newCard(reward) {
  const button = h("button", { type: "button", onclick: async () => {
    button.disabled = true;
    await probe(reward.name);
    button.disabled = false;
    await load();
  } }, "Ask now");
  return h("section", { class: "card stack", "data-endpoint": reward.name, "aria-label": reward.name },
    h("div", { class: "head" }, h("h2", {}, reward.name), h("span", { "data-part": "state" }), h("div", { class: "actions" }, button)),
    h("div", { "data-part": "problem" }), h("dl", { class: "facts", "data-part": "facts" }), h("div", { "data-part": "queue" }), h("dl", { class: "pairs", "data-part": "about" }));
}

function fill(card, reward, statistics) {
  const part = (name) => card.querySelector(`[data-part="${name}"]`);
  const last = probes.get(reward.name);
  const state = !last ? "unknown" : last.ok ? "up" : "down";
  replace(part("state"), h("span", { class: `state ${state}`, role: "status" }, { unknown: "not asked yet", up: "answers", down: "does not answer" }[state]));
  replace(part("problem"), last && !last.ok ? h("p", { class: "notice bad" }, last.problem) : null);
  const failures = Object.entries(statistics?.failures ?? {});
  const failed = failures.reduce((total, [, count]) => total + count, 0);
  const time = (seconds) => (seconds === null || seconds === undefined ? "–" : seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${formatNumber(seconds, 3)} s`);
  replace(part("facts"), [
    ["p50", time(statistics?.p50_seconds)],
    ["p95", time(statistics?.p95_seconds)],
    ["Failures", statistics?.requests ? `${formatNumber((100 * failed) / statistics.requests, 2)} %` : "–", statistics?.requests ? `${failed} of ${statistics.requests}${failures.length ? `: ${failures.map(([code, count]) => `${code} ${count}`).join(", ")}` : ""}` : statistics?.problem ?? "no request yet"],
    ["Circuit", statistics?.circuit ?? "–", statistics?.last_at ? `${OUTCOMES[statistics.last_outcome] ?? statistics.last_outcome} at ${formatTime(statistics.last_at)}` : null],
  ].map(([name, value, more]) => h("div", {}, h("dt", {}, name), h("dd", {}, value, more ? h("small", {}, more) : null))));
  replace(part("queue"), queueElement(queues.get(reward.name)));
  const info = last?.info;
  replace(part("about"), [
    ["Address", h("span", { class: "mono" }, reward.url)],
    ["Protocol", reward.kind],
    info?.model && ["Model", info.model],
    (info?.model_revision || statistics?.revision) && ["Revision", h("span", { class: "mono" }, info?.model_revision || statistics.revision)],
    info && ["Scores", info.calibrated ? "compare between prompts" : "order a group alone"],
    last && ["Last asked", `${formatTime(last.at)}${last.seconds === undefined ? "" : `, in ${time(last.seconds)}`}`],
    reward.description && ["Description", reward.description],
  ].filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** A rating service's queue. Its raters, invitations and deliveries are on its own page. */
function queueElement(found) {
  if (!found) return null;
  const { queue } = found;
  const deliveries = Object.entries(queue.deliveries).filter(([, count]) => count > 0).map(([state, count]) => `${formatNumber(count)} ${state.replace("_", " ")}`);
  return h("section", { class: "stack", "aria-label": "Rating queue" },
    h("h3", {}, "People who rank"),
    h("dl", { class: "facts" }, [
      ["Waiting", formatNumber(queue.pending), queue.oldest_s === null ? null : `the oldest for ${formatSeconds(queue.oldest_s)}`],
      ["Being ranked", formatNumber(queue.leased)],
      ["Ratings an hour", formatNumber(queue.ratings_per_hour), `${formatNumber(queue.answered)} in all`],
      ["Agreement", formatNumber(queue.agreement, 2), "Krippendorff's α"],
      ["Deliveries", deliveries.join(", ") || "none"],
    ].map(([name, value, more]) => h("div", {}, h("dt", {}, name), h("dd", {}, value, more ? h("small", {}, more) : null)))),
    found.problem ? h("p", { class: "notice warn" }, `These figures are old: ${found.problem}`) : null,
    h("p", {}, h("a", { href: found.operator_url, rel: "noreferrer" }, "Raters and their gold, invitations, deliveries to send again")));
}
