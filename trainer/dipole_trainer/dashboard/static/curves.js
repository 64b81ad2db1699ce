// What a job's figures mean as series: the one place that knows the names of a step's and an evaluation's data.

import { isHeldOut, rewardsAt } from "./reward_roles.js";

const PLAIN = new Set(["step", "steps", "lr", "staleness", "filled_in", "gated", "graphs_kept", "images_per_s", "eta_s", "gpu_gib", "skipped", "not_finite", "decoder_tau", "decoder_overlap", "created_at"]);
const MAX_POINTS = 2000; // of a curve that grows while it is watched; then every second of the older half goes
const FIRST_STEPS = 3;

/** A job's points, which grow as events come and never beyond MAX_POINTS. */
export class JobFigures {
  constructor(job, metrics) {
    this.job = job;
    this.steps = metrics.steps.data;
    this.evaluations = metrics.evaluations.data;
    this.skipped = new Map(metrics.skipped.map((each) => [each.reason, each.count]));
    this.failures = new Map(metrics.failures.map((each) => [`${each.reward}: ${each.reason}`, each.count]));
    this.#measure();
  }

  add(event) {
    if (event.kind === "step") {
      this.#put(this.steps, { ...event.data, created_at: event.created_at });
      if (this.steps.length <= FIRST_STEPS) this.#measure();
    }
    if (event.kind === "evaluation") this.#put(this.evaluations, { ...event.data, created_at: event.created_at });
    if (event.kind === "skipped_group") count(this.skipped, event.data.reason);
    if (event.kind === "reward_failure") count(this.failures, `${event.data.reward}: ${event.data.reason}`);
  }

  #put(points, point) {
    while (points.length && points.at(-1).step >= point.step) points.pop(); // it was trained again
    points.push(point);
    if (points.length > MAX_POINTS) {
      const half = points.length >> 1;
      points.splice(0, half, ...points.slice(0, half).filter((_, index) => index % 2 === 0));
    }
  }

  /** Where each reward began and how far its groups' candidates lay apart: the unit of normalised curves. */
  #measure() {
    this.unit = {};
    const first = this.steps.slice(0, FIRST_STEPS);
    for (const name of this.rewardNames()) {
      const mean = (part) => average(first.map((point) => point[part]?.[name]).filter((value) => value !== undefined));
      const [start, spread] = [mean("rewards"), mean("spread")];
      if (start !== null && spread) this.unit[name] = { start, spread };
    }
  }

  rewardNames() {
    return (this.job.rewards ?? []).map((reward) => reward.name);
  }

  isHeldOut(name) {
    const reward = rewardsAt(this.job, Infinity).find((each) => each.name === name);
    return reward !== undefined && isHeldOut(reward);
  }

  /** x of points: steps, or seconds since the job began. */
  x(points, kind) {
    const start = this.job.started_at ?? this.job.created_at;
    return points.map((point) => (kind === "time" ? Math.max(0, Math.round((point.created_at - start) * 10) / 10) : point.step));
  }

  /** Where weights were changed, as x: behind the last step that was trained with the old ones. */
  weightChanges(kind) {
    const after = (this.job.weight_changes ?? []).filter((each) => each.step !== null).map((each) => each.step);
    if (kind !== "time") return [...new Set(after)];
    const seconds = this.x(this.steps, kind);
    return after.map((step) => seconds[this.steps.findLastIndex((point) => point.step <= step)] ?? 0);
  }

  /** A series of steps; `read` gives a point's value. None where no step has it. */
  ofSteps(key, label, read, kind, more = {}) {
    return series(this.steps, this.x(this.steps, kind), key, label, read, more);
  }

  /** A series of evaluations with its interval; `read` gives {mean, low, high}. */
  ofEvaluations(key, label, read, kind, more = {}) {
    const found = series(this.evaluations, this.x(this.evaluations, kind), key, label, (point) => read(point)?.mean, { points: true, ...more });
    if (!found) return null;
    const bounds = (name) => this.evaluations.map((point) => read(point)?.[name] ?? null);
    const low = bounds("low");
    return low.some((value) => value !== null) ? { ...found, low, high: bounds("high") } : found;
  }

  /** Raw: a reward's mean over each step's groups, and over the evaluation's prompts. */
  rewardSeries(name, kind, smooth) {
    return [
      this.ofSteps(`train ${name}`, "training prompts", (point) => point.rewards?.[name], kind, { smooth, colour: 1 }),
      this.ofEvaluations(`eval ${name}`, "held-out prompts, 95 %", (point) => point.scores?.[name], kind, { colour: 2 }),
    ].filter(Boolean);
  }

  /** Parts of a reward's score (strict and graded, say), which evaluations alone have. */
  partSeries(name, kind) {
    const parts = new Set(this.evaluations.flatMap((point) => Object.keys(point.scores ?? {})).filter((score) => score.startsWith(`${name}.`)));
    return [...parts].map((part) => this.ofEvaluations(part, part.slice(name.length + 1), (point) => point.scores?.[part], kind)).filter(Boolean);
  }

  /** Normalised: how far each reward came, in spreads of its first groups; from its own start, and from the base. */
  normalisedSeries(kind, smooth, where) {
    return this.rewardNames().map((name, index) => {
      const unit = this.unit[name];
      if (!unit) return null;
      const label = `${name}${this.isHeldOut(name) ? " (held out)" : ""}`;
      const more = { colour: (index % 6) + 1 };
      if (where === "training") return this.ofSteps(name, label, (point) => (point.rewards?.[name] === undefined ? undefined : (point.rewards[name] - unit.start) / unit.spread), kind, { ...more, smooth });
      const scaled = (figure) => figure && { mean: figure.mean / unit.spread, low: figure.low === null ? null : figure.low / unit.spread, high: figure.high === null ? null : figure.high / unit.spread };
      return this.ofEvaluations(name, label, (point) => (point.step === 0 ? { mean: 0, low: null, high: null } : scaled(point.scores?.[name]?.difference)), kind, more);
    }).filter(Boolean);
  }

  spreadSeries(kind, smooth) {
    return this.rewardNames().map((name) => this.ofSteps(name, `${name}${this.isHeldOut(name) ? " (held out)" : ""}`, (point) => point.spread?.[name], kind, { smooth })).filter(Boolean);
  }

  lossSeries(kind, smooth) {
    const names = new Set(this.steps.flatMap((point) => Object.keys(point).filter((key) => !PLAIN.has(key) && typeof point[key] === "number")));
    return [...names].map((name) => this.ofSteps(name, LOSS_LABELS[name] ?? name, (point) => point[name], kind, { smooth })).filter(Boolean);
  }

  /** How far a tiny decoder's order is the VAE's, of steps that compared them. */
  decoderSeries(kind) {
    return Object.entries(DECODER_LABELS).map(([name, label]) => this.ofSteps(name, label, (point) => point[name], kind, { points: true })).filter(Boolean);
  }

  diversitySeries(kind) {
    const names = new Set(this.evaluations.flatMap((point) => Object.keys(point.diversities ?? {})));
    return [...names].map((name) => this.ofEvaluations(name, DIVERSITY_LABELS[name] ?? name, (point) => point.diversities?.[name], kind)).filter(Boolean);
  }

  /** Diversity as a share of the base's. */
  diversityShare(kind) {
    const found = this.ofEvaluations("ratio", "of the base's", (point) => (point.step === 0 ? { mean: 1 } : { mean: point.diversity_ratio ?? undefined }), kind);
    return found ? [found] : [];
  }

  phaseSeries(kind, smooth) {
    return Object.entries(PHASES).map(([name, label]) => this.ofSteps(name, label, (point) => point.seconds?.[name], kind, { smooth })).filter(Boolean);
  }

  plainSeries(name, label, kind, smooth) {
    const found = this.ofSteps(name, label, (point) => point[name], kind, { smooth });
    return found ? [found] : [];
  }
}

const LOSS_LABELS = { loss: "loss", drift_pref: "drift to the preferred", drift_ref: "drift to the base" };
const DECODER_LABELS = { decoder_tau: "Kendall's τ", decoder_overlap: "share of the chosen that both have" };
const DIVERSITY_LABELS = { distance: "mean distance in φ", Vendi: "different images (Vendi)" };
const PHASES = { generate: "generate", wait: "wait for rewards", update: "update" };

function series(points, x, key, label, read, more) {
  const values = points.map((point) => read(point) ?? null);
  return values.some((value) => value !== null) ? { key, label, x, values, ...more } : null;
}

function count(counts, name) {
  counts.set(name, (counts.get(name) ?? 0) + 1);
}

function average(values) {
  return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
}
