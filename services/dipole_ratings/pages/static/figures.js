// Numbers and times as an operator reads them. What is not known is a dash, never a zero.

export const DASH = "–";

export const number = (value) => (value ?? null) === null ? DASH : value.toLocaleString("en", { maximumFractionDigits: 0 });
export const decimal = (value) => (value ?? null) === null ? DASH : value.toFixed(2);
export const perHour = (value) => (value ?? null) === null ? DASH : value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 });
export const percent = (value) => (value ?? null) === null ? DASH : `${Math.round(value * 100)} %`;

/** 754 -> "13 min". */
export function duration(seconds) {
  if ((seconds ?? null) === null) return DASH;
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) if (seconds >= size * 1.5) return `${Math.round(seconds / size)} ${unit}`;
  return `${Math.round(seconds)} s`;
}

/** An ISO time or Unix seconds: "3 min ago", "in 6 d". */
export function moment(time) {
  if ((time ?? null) === null) return DASH;
  const at = typeof time === "number" ? time * 1000 : Date.parse(time);
  const seconds = (Date.now() - at) / 1000;
  if (Math.abs(seconds) < 5) return "now";
  return seconds < 0 ? `in ${duration(-seconds)}` : `${duration(seconds)} ago`;
}
