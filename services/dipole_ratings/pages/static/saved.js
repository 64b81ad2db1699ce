// What outlives a reload, in localStorage under the rater's pseudonym: drafts, the answer not sent yet, and answers
// that may be taken back. Where storage is refused, the page works on without it.

const DRAFTS_KEPT = 12;
const ANSWERS_KEPT = 20;
const memory = new Map(); // where localStorage is refused or full

function read(key, fallback) {
  let text = memory.get(key);
  try {
    text = localStorage.getItem(key) ?? text;
  } catch { /* refused: what memory has */ }
  try {
    return text ? JSON.parse(text) : fallback;
  } catch {
    return fallback;
  }
}

function write(key, value) {
  const text = JSON.stringify(value);
  memory.set(key, text);
  try {
    localStorage.setItem(key, text);
  } catch { /* refused or full: memory has it */ }
}

export class Saved {
  constructor(rater) {
    this.prefix = `dipole.rate.${rater}.`;
  }

  /** placements: {A: 1}; looks: {A: fingerprint}, by which the images are known when their task comes under another lease. */
  keepDraft(lease, placements, looks) {
    const others = this.#drafts().filter((draft) => draft.lease !== lease && !areSame(draft.looks, looks));
    const kept = Object.keys(placements).length ? [{ lease, placements, looks }, ...others] : others;
    write(`${this.prefix}drafts`, kept.slice(0, DRAFTS_KEPT));
  }

  draftOfLease(lease) {
    return this.#drafts().find((draft) => draft.lease === lease)?.placements ?? {};
  }

  /** Placements by today's labels, whatever the images were called when the draft was kept. */
  draftOfLooks(looks) {
    const draft = this.#drafts().find((each) => areSame(each.looks, looks));
    if (!draft) return {};
    const tiers = Object.fromEntries(Object.entries(draft.looks).map(([label, look]) => [look, draft.placements[label]]));
    return Object.fromEntries(Object.entries(looks).map(([label, look]) => [label, tiers[look]]));
  }

  /** The answer on its way: {lease, key, body, placements, looks}. One at a time. */
  get outgoing() {
    return read(`${this.prefix}outgoing`, null);
  }

  set outgoing(answer) {
    write(`${this.prefix}outgoing`, answer);
  }

  /** Answers of before, newest last: {id, placements}. */
  get answers() {
    return read(`${this.prefix}answers`, []);
  }

  pushAnswer(answer) {
    write(`${this.prefix}answers`, [...this.answers, answer].slice(-ANSWERS_KEPT));
  }

  dropAnswer(id) {
    write(`${this.prefix}answers`, this.answers.filter((answer) => answer.id !== id));
  }

  #drafts() {
    return read(`${this.prefix}drafts`, []);
  }
}

/** Whether two sets of looks are of the same images, which must differ among themselves. */
function areSame(one = {}, other = {}) {
  const [a, b] = [one, other].map((looks) => new Set(Object.values(looks)));
  return a.size > 0 && a.size === Object.keys(one).length && a.size === b.size && [...a].every((look) => b.has(look));
}

/** Of this browser, whoever rates. */
export const preferences = {
  get shortcuts() {
    return read("dipole.rate.shortcuts", true);
  },
  set shortcuts(on) {
    write("dipole.rate.shortcuts", on);
  },
};
