// The REST API, as any other client uses it; and a job's events as they happen.
//
//   request(path, {method, body})     JSON, or an ApiError that says what the server said
//   followEvents(job, cursor, …)      one stream a tab; polling where streaming fails; closed while the tab is hidden
//
// The key, where the server wants one, is asked for once and lives in this tab's sessionStorage. EventSource cannot send
// it, so streams are read with fetch.

import { h, save } from "./dom.js";

export const ROOT = new URL("../", import.meta.url);
const KEY = "dipole-key";
const POLL_MS = 3000;
const MAX_FAILURES = 2; // of the stream, after which events are polled for
const MAX_POLLED_PAGES = 20;
const POLLS_BETWEEN_STREAMS = 10;
const SILENCE_MS = 40000; // the server pings every 15 s

export class ApiError extends Error {
  constructor(status, problem) {
    super(problem?.detail || problem?.title || `the server answered ${status}`);
    this.status = status;
    this.errors = problem?.errors ?? [];
  }
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

/** fetch with the key; asks for one when the server wants it. */
async function fetchAuthorized(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...(options.headers ?? {}), ...(key ? { authorization: `Bearer ${key}` } : {}) };
    const response = await fetch(new URL(path, ROOT), { ...options, headers });
    if (response.status !== 401) return response;
    await askForKey(key);
  }
}

export async function request(path, { method = "GET", body, signal, headers = {} } = {}) {
  const options = { method, signal, headers };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { ...headers, "content-type": "application/json" };
  }
  const response = await fetchAuthorized(path, options);
  const answer = await response.json().catch(() => null);
  if (!response.ok) throw new ApiError(response.status, answer);
  return answer;
}

let asking = null;

/** One dialog, however many requests wait for the key. */
function askForKey(refused) {
  if (refused !== sessionStorage.getItem(KEY)) return Promise.resolve();
  asking ??= new Promise((resolve) => {
    const field = h("input", { type: "password", id: "key", required: true, autocomplete: "current-password", spellcheck: "false" });
    const dialog = h("dialog", { "aria-labelledby": "key-title" }, h("form", { method: "dialog" },
      h("h2", { id: "key-title" }, "This server wants a key"),
      h("p", { class: refused ? "notice bad" : "muted", role: refused ? "alert" : null },
        refused ? "The server does not know that key. Enter the value of DIPOLE_API_KEY, or a key made by it." :
          "Enter the value of DIPOLE_API_KEY, or a key made by it. It stays in this tab, and goes when the tab closes."),
      h("label", { for: "key" }, "Key"), field,
      h("div", { class: "actions" }, h("button", { class: "primary" }, "Go on"))));
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, field.value.trim());
      dialog.remove();
      asking = null;
      resolve();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}

/** An image's address: the server's, or of its bytes where they need the key. Revoke what begins with blob:. */
export async function imageAddress(path) {
  if (!hasKey()) return new URL(path, ROOT).href;
  const response = await fetchAuthorized(path);
  if (!response.ok) throw new ApiError(response.status, await response.json().catch(() => null));
  return URL.createObjectURL(await response.blob());
}

/** A link that downloads: the browser's own, or by fetch where the server wants the key. */
export function downloadLink(path, name, label) {
  return h("a", {
    href: new URL(path, ROOT).href,
    download: name,
    onclick: async (event) => {
      if (!hasKey()) return;
      event.preventDefault();
      const response = await fetchAuthorized(path);
      if (response.ok) save(name, await response.blob());
    },
  }, label);
}

export function showConnection(state, text) {
  const place = document.getElementById("connection");
  place.dataset.state = state;
  if (place.textContent !== text) place.textContent = text;
}

/** Call `onEvents(list)` with the job's events after `cursor`, oldest first, until it has ended; then `onEnd()`. */
export function followEvents(job, cursor, onEvents, onEnd) {
  let controller = null;
  let failures = 0;
  let ended = false;

  const take = (events) => {
    const fresh = events.filter((event) => eventNumber(event) > cursor);
    if (!fresh.length) return;
    cursor = Math.max(...fresh.map(eventNumber));
    onEvents(fresh);
  };

  const run = async () => {
    const mine = (controller = new AbortController());
    while (!ended && !mine.signal.aborted) {
      try {
        const over = failures < MAX_FAILURES ? await readStream(job, cursor, mine, take, () => (failures = 0)) : await poll(job, take, cursor, mine.signal);
        if (over) {
          ended = true;
          showConnection("ended", "job has ended");
          onEnd();
          return;
        }
      } catch (error) {
        if (mine.signal.aborted) return;
        if (error instanceof TypeError) showConnection("away", "the server does not answer");
      }
      failures = failures > MAX_FAILURES + POLLS_BETWEEN_STREAMS ? 0 : failures + 1;
      await pause(failures < MAX_FAILURES ? 500 : POLL_MS, mine.signal);
    }
  };

  const onVisibility = () => {
    controller?.abort();
    if (document.hidden) showConnection("paused", "paused while hidden");
    else if (!ended) run();
  };
  document.addEventListener("visibilitychange", onVisibility);
  if (!document.hidden) run();
  return () => {
    ended = true;
    controller?.abort();
    document.removeEventListener("visibilitychange", onVisibility);
  };
}

/** Whether the job has ended. Events that come together are given together, so that a replay draws once. */
async function readStream(job, cursor, controller, take, onAlive) {
  const stop = new AbortController();
  const abort = () => stop.abort();
  controller.signal.addEventListener("abort", abort);
  let silence = null;
  const alive = () => {
    clearTimeout(silence);
    silence = setTimeout(abort, SILENCE_MS);
  };
  try {
    alive();
    const headers = { "last-event-id": String(cursor), accept: "text/event-stream" };
    const response = await fetchAuthorized(`v1/fine_tuning/jobs/${encodeURIComponent(job)}/stream`, { headers, signal: stop.signal });
    if (response.status === 204) return true;
    if (!response.ok) throw new ApiError(response.status, await response.json().catch(() => null));
    showConnection("live", "live");
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return false;
      alive();
      onAlive();
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      take(blocks.map(parseBlock).filter(Boolean));
    }
  } finally {
    clearTimeout(silence);
    controller.signal.removeEventListener("abort", abort);
    stop.abort();
  }
}

function parseBlock(block) {
  const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
  return data.length ? JSON.parse(data.join("\n")) : null;
}

/** Whether the job has ended. Reads back to the cursor, but no further than MAX_POLLED_PAGES. */
async function poll(job, take, cursor, signal) {
  const path = `v1/fine_tuning/jobs/${encodeURIComponent(job)}`;
  const state = await request(path, { signal });
  const found = [];
  for (let page = 0, after = ""; page < MAX_POLLED_PAGES; page += 1) {
    const events = await request(`${path}/events?limit=100${after}`, { signal });
    found.push(...events.data);
    if (!events.has_more || eventNumber(events.data.at(-1)) <= cursor) break;
    after = `&after=${events.last_id}`;
  }
  showConnection("live", "polling");
  take(found.toReversed());
  return TERMINAL.has(state.status);
}

export const TERMINAL = new Set(["succeeded", "failed", "cancelled"]);

export function eventNumber(event) {
  return Number(event.id.replace("ftevent-", ""));
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}

/** Call `work` now and every `ms` while the tab is seen; a failure is shown and tried again. */
export function repeatWhileVisible(work, ms) {
  let timer = null;
  let running = false;
  const turn = async () => {
    if (running || document.hidden) return;
    running = true;
    clearTimeout(timer);
    try {
      await work();
      showConnection("live", "live");
    } catch (error) {
      showConnection("away", error instanceof ApiError ? error.message : "the server does not answer");
      if (!(error instanceof ApiError || error instanceof TypeError)) throw error;
    } finally {
      running = false;
      timer = setTimeout(turn, ms);
    }
  };
  document.addEventListener("visibilitychange", turn);
  turn();
  return turn;
}

/** Begin a page; where it cannot, it says why, and `missing` where what it shows is not there. */
export function begin(start, missing = null) {
  start().catch((error) => {
    if (!(error instanceof ApiError)) throw error;
    const text = error.status === 404 && missing ? missing : error.message;
    document.getElementById("main").replaceChildren(h("div", { class: "notice bad", role: "alert" }, text));
  });
}
