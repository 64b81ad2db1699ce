// One task's ranking: which candidate lies in which tier, and what was done before. No DOM, no network.
//
// Tiers are 1 (best) to maxTiers; 0 is unranked, where every candidate begins.

export const UNRANKED = 0;

export class Ranking {
  /** labels: ["A", "B", …] in the order shown; placements: {A: 2} of an earlier draft, whatever else it holds is ignored. */
  constructor(labels, maxTiers, placements = {}) {
    this.labels = labels;
    this.maxTiers = maxTiers;
    this.tiers = new Map(labels.map((label) => [label, this.#validTier(placements[label])]));
    this.history = [];
  }

  tierOf(label) {
    return this.tiers.get(label);
  }

  in(tier) {
    return this.labels.filter((label) => this.tiers.get(label) === tier);
  }

  /** True if it changed anything. */
  place(label, tier) {
    if (!this.tiers.has(label) || tier !== this.#validTier(tier) || this.tiers.get(label) === tier) return false;
    this.history.push([label, this.tiers.get(label)]);
    this.tiers.set(label, tier);
    return true;
  }

  /** A tier up (-1) or down (+1); the tray of the unranked lies below the last tier. */
  move(label, step) {
    const below = this.maxTiers + 1;
    const tier = (this.tiers.get(label) || below) + step;
    return tier >= 1 && tier <= below && this.place(label, tier === below ? UNRANKED : tier);
  }

  /** Into the nearest tier above that holds a candidate; from the tray that is the lowest one that does. */
  tieWithAbove(label) {
    const from = this.tiers.get(label) || this.maxTiers + 1;
    for (let tier = from - 1; tier >= 1; tier--) {
      if (this.in(tier).length) return this.place(label, tier);
    }
    return false;
  }

  /** Takes the last placement back; the label it concerned, or null. */
  undo() {
    const last = this.history.pop();
    if (!last) return null;
    this.tiers.set(...last);
    return last[0];
  }

  /** Two candidates that are ranked make a comparison, and so an answer. */
  get isComplete() {
    return this.labels.length - this.in(UNRANKED).length >= Math.min(2, this.labels.length);
  }

  get isUntouched() {
    return this.in(UNRANKED).length === this.labels.length;
  }

  placements() {
    return Object.fromEntries([...this.tiers].filter(([, tier]) => tier !== UNRANKED));
  }

  /** What the API takes: tiers best first without empty ones, and those left unranked. */
  answer() {
    const tiers = [];
    for (let tier = 1; tier <= this.maxTiers; tier++) {
      if (this.in(tier).length) tiers.push(this.in(tier));
    }
    return { tiers, unranked: this.in(UNRANKED) };
  }

  #validTier(tier) {
    return Number.isInteger(tier) && tier >= 1 && tier <= this.maxTiers ? tier : UNRANKED;
  }
}

/** "Candidate A is in tier 1, best, with C." */
export function describePlacement(ranking, label) {
  const tier = ranking.tierOf(label);
  if (tier === UNRANKED) return `Candidate ${label} is unranked.`;
  const others = ranking.in(tier).filter((other) => other !== label);
  const company = others.length ? `, tied with ${listWords(others)}` : "";
  return `Candidate ${label} is in ${nameTier(tier, ranking.maxTiers)}${company}.`;
}

export function nameTier(tier, maxTiers) {
  if (tier === UNRANKED) return "unranked";
  return `tier ${tier}${tier === 1 ? ", best" : tier === maxTiers ? ", worst" : ""}`;
}

function listWords(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}
