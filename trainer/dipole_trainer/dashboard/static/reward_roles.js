// What a reward does in a job: it is trained on, is a gate, or is only watched.

import { formatNumber } from "./dom.js";

export function isHeldOut(reward) {
  return reward.weight === 0 && (reward.at_least ?? null) === null;
}

export function describeRole(reward) {
  const roles = [];
  if (reward.weight !== 0) roles.push(`trained ×${formatNumber(reward.weight)}`);
  if ((reward.at_least ?? null) !== null) roles.push(`gate ≥ ${formatNumber(reward.at_least)}`);
  return roles.join(", ") || "held out";
}
