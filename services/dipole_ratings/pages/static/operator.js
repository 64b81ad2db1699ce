// The operator's page: who may rate, how it goes, and what was delivered. It asks the JSON API every few seconds, while
// somebody looks.

import { Problem, Unreachable, ask, relative } from "./api.js";
import { DASH, decimal, duration, moment, number, perHour, percent } from "./figures.js";
import { Table } from "./tables.js";

const REFRESH_MS = 5000;
const KEY = "dipole.operator.key";
const $ = (id) => document.getElementById(id);

let timer = null;

const operate = (method, path, body) => ask(method, path, { body, headers: authorization() });
const key = () => sessionStorage.getItem(KEY);
const authorization = () => (key() ? { Authorization: `Bearer ${key()}` } : {});

const tables = {
  invitations: new Table($("invitations"), {
    caption: "Invitations",
    key: (row) => row.id,
    empty: "Nobody is invited yet. Make a link above, and send it to somebody.",
    columns: [
      { name: "Name", text: (row) => row.name || DASH },
      { name: "Rater", text: (row) => row.rater },
      { name: "Made", text: (row) => moment(row.created_at) },
      { name: "Expires", text: (row) => (row.expires_at ? moment(row.expires_at) : "never") },
      { name: "State", text: (row) => row.state },
    ],
    buttons: (row) =>
      row.state === "revoked" ? [] : [{ text: "Revoke", label: `invitation of ${row.name || row.rater}`, act: () => revoke(row) }],
  }),
  raters: new Table($("raters"), {
    caption: "Raters",
    key: (row) => row.rater,
    empty: "Nobody has rated yet.",
    columns: [
      { name: "Rater", text: (row) => row.name || row.rater },
      { name: "Answers", text: (row) => number(row.answers), number: true },
      { name: "Repeats agreed", text: (row) => percent(row.repeats_agreed), number: true },
      { name: "Gold right", text: (row) => percent(row.gold_right), number: true },
      { name: "Agreement", text: (row) => decimal(row.agreement), number: true },
      { name: "Weight", text: (row) => decimal(row.weight), number: true },
      { name: "Last seen", text: (row) => moment(row.last_seen) },
      { name: "State", text: (row) => (row.paused ? "paused" : "rates") },
    ],
    buttons: (row) => [
      { text: row.paused ? "Resume" : "Pause", label: row.name || row.rater, act: () => change("PATCH", `/v1/ratings/raters/${encodeURIComponent(row.rater)}`, { paused: !row.paused }) },
      { text: "Forget", label: row.name || row.rater, act: () => forget(row) },
    ],
  }),
  jobs: new Table($("jobs"), {
    caption: "Jobs",
    key: (row) => row.job,
    empty: "No job has asked people yet.",
    columns: [
      { name: "Job", text: (row) => row.job },
      { name: "Waiting", text: (row) => number(row.pending), number: true },
      { name: "Done", text: (row) => number(row.completed), number: true },
      { name: "Oldest", text: (row) => duration(row.oldest_s), number: true },
      { name: "Priority", text: (row) => number(row.priority), number: true },
    ],
  }),
  deliveries: new Table($("deliveries"), {
    caption: "Deliveries",
    key: (row) => row.id,
    empty: "Nothing to deliver. Rankings whose request named a callback appear here.",
    columns: [
      { name: "Delivery", text: (row) => row.id },
      { name: "To", text: (row) => row.url },
      { name: "State", text: (row) => row.state.replace("_", " ") },
      { name: "Attempts", text: (row) => number(row.attempts), number: true },
      { name: "Last error", text: (row) => row.last_error ?? DASH },
    ],
    buttons: (row) => [{ text: "Resend", label: row.id, act: () => change("POST", `/v1/ratings/deliveries/${encodeURIComponent(row.id)}/resend`) }],
  }),
};

// --- asking ---

async function refresh() {
  clearTimeout(timer);
  try {
    const replies = await Promise.all(
      ["status", "invitations", "raters", "deliveries"].map((name) => operate("GET", `/v1/ratings/${name}`)),
    );
    show(...replies.map(({ body }) => body));
  } catch (error) {
    if (error instanceof Problem && error.status === 401) return askForKey();
    tellTrouble(error);
  }
  schedule();
}

function schedule() {
  clearTimeout(timer);
  if (document.visibilityState === "visible") timer = setTimeout(refresh, REFRESH_MS);
}

function show(status, invitations, raters, deliveries) {
  $("key-screen").hidden = true;
  $("board").hidden = false;
  $("forget-key").hidden = !key();
  if ($("trouble").dataset.passing) $("trouble").hidden = true;
  $("figure-pending").textContent = number(status.pending);
  $("figure-leased").textContent = number(status.leased);
  $("figure-oldest").textContent = duration(status.oldest_s);
  $("figure-rate").textContent = perHour(status.ratings_per_hour);
  $("figure-agreement").textContent = decimal(status.agreement);
  $("figure-answered").textContent = number(status.answered);
  tables.jobs.show(status.by_job);
  tables.invitations.show(invitations);
  tables.raters.show(raters);
  tables.deliveries.show(deliveries);
}

function tellTrouble(error) {
  const isPassing = error instanceof Unreachable;
  if (!isPassing && !(error instanceof Problem)) throw error;
  $("trouble").dataset.passing = isPassing ? "yes" : "";
  $("trouble-title").textContent = isPassing ? "No connection; trying again." : "The service refused.";
  $("trouble-text").textContent = isPassing ? "What is shown may be old." : error.message;
  $("trouble").hidden = false;
}

/** Do it, then show what became of it. */
async function change(method, path, body) {
  try {
    const reply = await operate(method, path, body);
    $("trouble").hidden = true;
    await refresh();
    return reply.body;
  } catch (error) {
    if (error instanceof Problem && error.status === 401) return askForKey();
    return tellTrouble(error);
  }
}

// --- the key ---

function askForKey() {
  const wasWrong = Boolean(key());
  sessionStorage.removeItem(KEY);
  $("board").hidden = true;
  $("forget-key").hidden = true;
  $("key-screen").hidden = false;
  $("key-title").textContent = wasWrong ? "That key does not open it" : "This service has a key";
  $("key").value = "";
  $("key").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  refresh();
});

$("forget-key").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  location.reload();
});

// --- what an operator does ---

$("invite").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = $("invite-name").value.trim();
  const expiry = $("invite-expiry").value;
  const made = await change("POST", "/v1/ratings/invitations", {
    ...(name && { name }),
    ...(expiry && { expires_in_s: Number(expiry) }),
  });
  if (!made) return;
  $("invite-name").value = "";
  $("link-title").textContent = `The link for ${made.name || made.rater}.`;
  $("link").value = new URL(relative(made.link), location.href).href;
  $("copied").textContent = "";
  $("link-panel").hidden = false;
  $("link").select();
});

$("copy").addEventListener("click", async () => {
  $("link").select();
  try {
    await navigator.clipboard.writeText($("link").value);
  } catch {
    document.execCommand("copy"); // a page over plain HTTP has no clipboard of its own
  }
  $("copied").textContent = "Copied.";
});

async function revoke({ id, name, rater }) {
  const sure = await confirm(`Revoke the invitation of ${name || rater}?`, "The link and every browser that came by it stop working. What was answered stays.", "Revoke");
  if (sure) change("DELETE", `/v1/ratings/invitations/${encodeURIComponent(id)}`);
}

async function forget({ rater, name }) {
  const sure = await confirm(`Forget ${name || rater}?`, "Name, links and texts go for good. The answers stay, under a pseudonym that leads to nobody.", "Forget");
  if (sure) change("DELETE", `/v1/ratings/raters/${encodeURIComponent(rater)}`);
}

function confirm(title, text, yes) {
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = yes;
  $("confirm").returnValue = "";
  $("confirm").showModal();
  return new Promise((resolve) => $("confirm").addEventListener("close", () => resolve($("confirm").returnValue === "yes"), { once: true }));
}

for (const button of document.querySelectorAll("[data-export]")) {
  button.addEventListener("click", () => download(button.dataset.export));
}

/** By fetch and not by a link, which could not carry the key. */
async function download(format) {
  try {
    const response = await fetch(relative(`/v1/ratings/export?format=${format}`), { headers: authorization() });
    if (!response.ok) throw new Problem(response.status, await response.json().catch(() => ({})));
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(await response.blob()), download: `ratings.${format}` });
    link.click();
    URL.revokeObjectURL(link.href);
  } catch (error) {
    tellTrouble(error instanceof Problem ? error : new Unreachable(error));
  }
}

$("trouble-close").addEventListener("click", () => ($("trouble").hidden = true));
document.addEventListener("visibilitychange", () => (document.visibilityState === "visible" ? refresh() : clearTimeout(timer)));

refresh();
