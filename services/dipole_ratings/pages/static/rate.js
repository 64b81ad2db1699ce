// The rater's page: it takes a task, shows it, sends what was answered, and takes the next. board.js draws, ranking.js
// holds the ranking, lease.js the time, saved.js what outlives a reload, screens.js shows and says, and network.js asks
// api.js until there is an answer.

import { Problem, Unreachable, ask, makeKey } from "./api.js";
import { Board } from "./board.js";
import { enableDrag } from "./drag.js";
import { DwellTimer } from "./dwell.js";
import { fingerprint } from "./fingerprint.js";
import { enableKeys } from "./keyboard.js";
import { LeaseClock } from "./lease.js";
import { hideLeaseNotice, showTimeLeft, tellLapse, warnOfLapse } from "./lease_notice.js";
import { persist } from "./network.js";
import { Ranking, UNRANKED, describePlacement } from "./ranking.js";
import { Saved, preferences } from "./saved.js";
import { $, count, say, sentence, showProgress, showScreen, tellTrouble } from "./screens.js";
import { enableSkipDialog, openSkipDialog } from "./skip_dialog.js";
import { Zoom } from "./zoom.js";

const LOOK_AGAIN_S = 10; // where the server names no time
const PAUSED_LOOK_S = 20;
let rater = null; // {rater, answered, answered_today, waiting, paused}
let saved = null;
let task = null; // the lease with its images
let ranking = null;
let looks = {}; // {A: fingerprint}, once the images are loaded
let isSending = false;
let looking = null; // the timer of the next look, where there is nothing to do

const board = new Board(
  { stage: $("stage"), grid: $("grid"), lanes: $("lanes") },
  {
    pictureClicked: clickPicture,
    selected: (label, options) => select(label, options),
    placed: (label, tier) => place(label, tier),
    loaded: settleImages,
  },
);
const zoom = new Zoom($("grid"), (on) => {
  $("zoom").setAttribute("aria-pressed", String(on));
  say(on ? "All images are zoomed at the same place. Shift and arrows look around." : "Zoom is off.");
});
const dwell = new DwellTimer();
const clock = new LeaseClock({ renew: renewLease, tick: showTimeLeft, warn: warnOfLapse, safe: hideLeaseNotice, lapse: tellLapse });

// --- coming in ---

async function start() {
  const token = takeToken();
  try {
    if (token) await persist(() => ask("POST", "/v1/rater/session", { body: { invitation: token } }));
    await loadRater();
    await sendOutgoing();
    await takeTask();
  } catch (error) {
    handleRefusal(error);
  }
}

/** The invitation in the address's fragment, which then leaves the address bar and the history. */
function takeToken() {
  const token = new URLSearchParams(location.hash.slice(1)).get("invitation");
  if (token) history.replaceState(null, "", location.pathname);
  return token;
}

async function loadRater() {
  rater = (await persist(() => ask("GET", "/v1/rater"))).body;
  if (saved === null) saved = new Saved(rater.rater);
  showProgress(rater);
}

function handleRefusal(error) {
  if (!(error instanceof Problem)) throw error;
  if (error.status === 401) return askForInvitation(error);
  if (error.status === 403) return showPaused();
  tellTrouble("The server refused.", error);
}

function askForInvitation(error) {
  dropTask();
  $("invitation-text").textContent = `${sentence(error.message)} Open the link that you were given, or paste it here.`;
  showScreen("invitation", rater);
}

$("invitation-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("invitation").value.trim();
  const token = text.includes("invitation=") ? new URLSearchParams(text.slice(text.indexOf("#") + 1)).get("invitation") : text;
  history.replaceState(null, "", `${location.pathname}#${new URLSearchParams({ invitation: token })}`);
  saved = rater = null;
  showScreen("loading", rater);
  start();
});

// --- tasks ---

async function takeTask() {
  const reply = await persist(() => ask("POST", "/v1/rater/leases"));
  if (reply.body === null) return showEmpty(reply.retryAfterS);
  showTask(reply.body);
}

function showTask(lease, placements = null) {
  clearTimeout(looking);
  task = lease;
  const labels = lease.images.map((image) => image.label);
  ranking = new Ranking(labels, lease.max_tiers, placements ?? saved.draftOfLease(lease.id));
  $("prompt").textContent = lease.prompt;
  $("prompt").classList.toggle("long", lease.prompt.length > 140);
  $("instructions").textContent = lease.instructions ?? "";
  $("instructions").hidden = !lease.instructions;
  looks = {};
  zoom.off();
  showScreen("task", rater);
  board.show(lease, ranking);
  clock.start(lease);
  hideLeaseNotice();
  dwell.restart();
  say(ranking.isUntouched ? `${labels.length} images to rank.` : "Your ranking of these images was kept.");
  renderActions();
}

/** Once all images are there they are known by their looks, and a draft of an earlier lease is found. */
function settleImages() {
  renderActions();
  if (!ranking || !board.areLoaded || Object.keys(looks).length) return;
  looks = Object.fromEntries([...board.images].map(([label, image]) => [label, fingerprint(image)]).filter(([, look]) => look));
  if (ranking.isUntouched && ranking.history.length === 0) {
    const placements = saved.draftOfLooks(looks);
    for (const label of ranking.labels) if (placements[label]) ranking.place(label, placements[label]);
    ranking.history = [];
    if (!ranking.isUntouched) say("Your ranking of these images was kept.");
  }
  if (!ranking.isUntouched) saved.keepDraft(task.id, ranking.placements(), looks);
  board.render();
  renderActions();
}

function dropTask() {
  clock.stop();
  hideLeaseNotice();
  zoom.off();
  task = ranking = null;
}

function showEmpty(retryAfterS) {
  dropTask();
  showScreen("empty", rater);
  $("empty-count").textContent = rater.answered_today ? `You have ranked ${count(rater.answered_today, "set", "sets")} today. Thank you.` : "";
  $("empty-undo").hidden = saved.answers.length === 0;
  lookAgainIn(retryAfterS ?? LOOK_AGAIN_S);
}

function showPaused() {
  dropTask();
  showScreen("paused", rater);
  lookAgainIn(PAUSED_LOOK_S);
}

/** A hidden page does not ask; it looks as soon as it is seen again. */
function lookAgainIn(seconds) {
  clearTimeout(looking);
  looking = setTimeout(lookAgain, seconds * 1000 * (1 + Math.random() / 5));
}

async function lookAgain() {
  clearTimeout(looking);
  looking = null;
  if (document.visibilityState !== "visible") return;
  try {
    await loadRater();
    await takeTask();
  } catch (error) {
    handleRefusal(error);
  }
}

$("look-again").addEventListener("click", lookAgain);

// --- ranking ---

function clickPicture(label, x, y, pointerType) {
  const isFinger = pointerType === "touch";
  select(label, { focus: !isFinger });
  if (!isFinger) zoom.toggle(x, y);
}

function select(label, { focus = false } = {}) {
  if (isSending || !ranking || ranking.tierOf(label) === undefined) return;
  board.select(label, { focus });
}

function place(label, tier) {
  if (isSending || !ranking) return;
  if (label === null) return say("Select an image first: tap it, or press its letter.");
  if (tier > ranking.maxTiers) return say(`This task has ${ranking.maxTiers} tiers.`);
  if (label !== board.selection) board.select(label);
  ranking.place(label, tier);
  changed(describePlacement(ranking, label));
}

function changed(message) {
  saved.keepDraft(task.id, ranking.placements(), looks);
  board.render();
  renderActions();
  say(message);
}

function turn(step) {
  if (!ranking) return;
  const labels = ranking.labels;
  const at = labels.indexOf(board.selection);
  const next = at < 0 ? (step > 0 ? 0 : labels.length - 1) : (at + step + labels.length) % labels.length;
  select(labels[next], { focus: true });
}

function act(change, nothing) {
  const label = board.selection;
  if (isSending || !ranking) return;
  if (!label) return say("Select an image first: tap it, or press its letter.");
  if (change(label)) changed(describePlacement(ranking, label));
  else say(nothing);
}

function undo({ focus = false } = {}) {
  if (isSending) return;
  const label = ranking?.undo();
  if (!label) return takeBackAnswer();
  board.select(label, { focus });
  changed(`Undone. ${describePlacement(ranking, label)}`);
}

/** The last answer's task comes back with the ranking as it was, as long as the answer was not delivered. */
async function takeBackAnswer() {
  const last = saved?.answers.at(-1);
  if (!last) return say("There is nothing to undo.");
  setSending(true);
  try {
    const current = task;
    const reply = await persist(() => ask("DELETE", `/v1/rater/answers/${last.id}`));
    saved.dropAnswer(last.id);
    if (current && current.id !== reply.body.id) release(current);
    rater.answered_today = Math.max(0, rater.answered_today - 1);
    setSending(false);
    showTask(reply.body, last.placements);
    saved.keepDraft(task.id, ranking.placements(), looks);
    showProgress(rater);
    say("Your last answer is taken back. Change it and submit again.");
  } catch (error) {
    setSending(false);
    if (!(error instanceof Problem) || error.status === 401 || error.status === 403) return handleRefusal(error);
    saved.dropAnswer(last.id);
    $("empty-undo").hidden = true;
    renderActions();
    tellTrouble("Your last answer can no longer be taken back.", error);
    say("Your last answer can no longer be taken back.");
  }
}

// --- answering ---

function submit() {
  if (!ranking || isSending) return;
  if (!board.areLoaded || !ranking.isComplete) return say($("submit-hint").textContent);
  send(ranking.answer());
}

function send(answer) {
  if (!task || isSending) return;
  const body = { ...answer, dwell_ms: Math.round(dwell.ms) };
  saved.outgoing = { lease: task.id, key: makeKey(), body, placements: ranking.placements(), looks };
  clock.stop();
  hideLeaseNotice();
  deliver();
}

async function deliver() {
  setSending(true); // until the next task is there: the old one can be neither changed nor sent again
  try {
    await sendOutgoing();
    await takeTask();
  } catch (error) {
    handleRefusal(error);
  } finally {
    setSending(false);
  }
}

/** Send what waits to be sent, until it is. It goes with the same key each time, so the server counts it once. */
async function sendOutgoing() {
  const answer = saved.outgoing;
  if (!answer) return;
  try {
    const headers = { "Idempotency-Key": answer.key };
    const reply = await persist(() => ask("POST", `/v1/rater/leases/${answer.lease}/answer`, { body: answer.body, headers }), {
      title: "Not sent yet; trying again.",
      text: "Your answer is kept on this device, even if you close the page.",
    });
    saved.outgoing = null;
    saved.keepDraft(answer.lease, {}, answer.looks);
    if (reply.body.undo) saved.pushAnswer({ id: reply.body.id, placements: answer.placements });
    if (!answer.body.skip) rater.answered_today += 1;
    rater.waiting = Math.max(0, rater.waiting - 1);
    showProgress(rater);
    loadRater().catch(() => {}); // the figures may have moved; the next request tells of any trouble
  } catch (error) {
    if (error instanceof Problem && error.status === 401) throw error; // it waits for the rater to come in again
    saved.outgoing = null;
    if (!(error instanceof Problem) || error.status === 403) throw error;
    tellTrouble("The server did not take your answer.", error);
  }
}

function setSending(on) {
  isSending = on;
  $("panel").inert = on;
  $("grid").inert = on;
  renderActions();
}

function renderActions() {
  if (!ranking) return;
  const left = ranking.in(UNRANKED).length;
  const failed = board.failedLabels;
  const isReady = board.areLoaded && ranking.isComplete;
  $("submit").disabled = isSending || !isReady;
  $("submit").textContent = isSending ? "Sending …" : "Submit";
  $("submit-hint").textContent = failed.length
    ? `Image ${failed.join(", ")} could not be loaded.`
    : !board.areLoaded
      ? "The images are loading."
      : !ranking.isComplete
        ? "Rank two images or more."
        : left
          ? `${count(left, "image", "images")} unranked: not judged.`
          : "Every image is ranked.";
  $("undo").disabled = isSending || (ranking.history.length === 0 && saved.answers.length === 0);
  $("undo").title = ranking.history.length ? "Undo the last placement" : "Take back the last answer";
}

// --- skipping ---

enableSkipDialog((skip) => send({ skip }));

function openSkip() {
  if (ranking && !isSending) openSkipDialog();
}

// --- time ---

async function renewLease() {
  try {
    return (await ask("PUT", `/v1/rater/leases/${task.id}`)).body;
  } catch (error) {
    if (error instanceof Unreachable) return null; // the time goes on as it was
    if (!(error instanceof Problem)) throw error;
    if (error.status === 401) askForInvitation(error);
    else if (error.status === 403) showPaused();
    else {
      clock.stop();
      tellLapse();
    }
    return null;
  }
}

$("extend").addEventListener("click", async () => {
  if (clock.timer) return void (await clock.extend());
  try {
    await takeTask();
  } catch (error) {
    handleRefusal(error);
  }
});

document.addEventListener("visibilitychange", () => {
  const isVisible = document.visibilityState === "visible";
  if (isVisible && looking === null && ["empty", "paused"].includes(document.body.dataset.screen)) lookAgain();
});

// --- leaving ---

/** A task that was begun is kept, for whoever reloads; an untouched one goes to somebody else at once. */
window.addEventListener("pagehide", () => {
  if (task && ranking.isUntouched && !saved.outgoing) release(task, { keepalive: true });
});

window.addEventListener("hashchange", () => location.reload()); // another invitation in this tab
window.addEventListener("pageshow", (event) => event.persisted && location.reload());

function release(lease, options = {}) {
  ask("DELETE", `/v1/rater/leases/${lease.id}`, options).catch(() => {}); // else it lapses by itself
}

$("leave").addEventListener("click", async () => {
  clearTimeout(looking);
  try {
    await persist(() => ask("DELETE", "/v1/rater/session"));
  } catch (error) {
    if (!(error instanceof Problem)) throw error; // a session that is over already is left as well
  }
  dropTask();
  showScreen("left", rater);
});

// --- wiring ---

$("submit").addEventListener("click", submit);
$("undo").addEventListener("click", () => undo());
$("empty-undo").addEventListener("click", takeBackAnswer);
$("skip").addEventListener("click", openSkip);
$("none-usable").addEventListener("click", () => send({ none_usable: true }));
$("zoom").addEventListener("click", () => zoom.toggle());
$("help").addEventListener("click", () => $("help-dialog").showModal());
$("shortcuts").checked = preferences.shortcuts;
$("shortcuts").addEventListener("change", (event) => (preferences.shortcuts = event.target.checked));

enableDrag($("screen-task"), { mayDrag: (source) => !isSending && !(zoom.on && source.matches(".picture")), drop: place });
enableKeys(
  {
    select: (label) => select(label, { focus: true }),
    place: (tier) => place(board.selection, tier),
    move: (step) => act((label) => ranking.move(label, step), "It is at the end already."),
    turn,
    look: (dx, dy) => zoom.on && zoom.step(dx, dy),
    tie: () => act((label) => ranking.tieWithAbove(label), "No image lies above it."),
    zoom: () => zoom.toggle(),
    submit,
    undo: () => undo({ focus: true }),
    skip: openSkip,
    help: () => $("help-dialog").showModal(),
  },
  { isOn: () => preferences.shortcuts, isTaskShown: () => document.body.dataset.screen === "task" },
);

start();
