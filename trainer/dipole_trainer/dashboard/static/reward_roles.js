// What a reward does in a job: it is trained on, is a gate, or is only watched.

import { formatNumber } from "./dom.js";

/** A job's rewards with the weights that counted after `step` updates; `asked`: with those that wait for a step too. */
export function rewardsAt(job, step, { asked = false } = {}) {
  const changes = (job.weight_changes ?? []).filter((each) => (each.step === null ? asked : each.step <= step));
  return (job.rewards ?? []).map((reward) => changes.reduce((found, { weights }) => (reward.name in weights ? { ...found, weight: weights[reward.name] } : found), reward));
}

export function isHeldOut(reward) {
  return reward.weight === 0 && (reward.at_least ?? null) === null;
}

export function describeRole(reward) {
  const roles = [];
  if (reward.weight !== 0) roles.push(`trained ×${formatNumber(reward.weight)}`);
  if ((reward.at_least ?? null) !== null) roles.push(`gate ≥ ${formatNumber(reward.at_least)}`);
  return roles.join(", ") || "held out";
}
