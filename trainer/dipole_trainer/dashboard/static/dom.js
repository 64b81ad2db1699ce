// Elements, numbers and times as every page shows them.

const SVG = "http://www.w3.org/2000/svg";

/** h("p", {class: "muted", onclick}, "text", child, …): an element. Text is text, never markup. */
export function h(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (typeof value !== "string" && key in element && !(element instanceof SVGElement)) element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Replace what an element holds, unless it says the same already: focus and selection stay where they are. */
export function replace(element, ...children) {
  const next = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  const shell = element.cloneNode(false);
  shell.append(...next.map((child) => (child instanceof Node ? child.cloneNode(true) : child)));
  if (shell.innerHTML !== element.innerHTML) element.replaceChildren(...next);
  return element;
}

export function formatNumber(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return value.toLocaleString("en").replaceAll(",", "\u202f").replace(/^-/, "−");
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(digits)));
  return text.replace(/^-/, "−");
}

export function formatSeconds(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

export function formatBytes(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (bytes >= 1000 && at < units.length - 1) [bytes, at] = [bytes / 1000, at + 1];
  return `${at && bytes < 10 ? bytes.toFixed(1) : Math.round(bytes)} ${units[at]}`;
}

export function formatTime(unix) {
  const then = new Date(unix * 1000);
  const today = then.toDateString() === new Date().toDateString();
  const options = { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false };
  return then.toLocaleString("en-GB", today ? options : { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hour12: false });
}

export function timeElement(unix) {
  return h("time", { datetime: new Date(unix * 1000).toISOString(), title: new Date(unix * 1000).toLocaleString("en-GB") }, formatTime(unix));
}

const STATE_WORDS = { validating_files: "checking files" };

export function stateElement(state) {
  return h("span", { class: `state ${state}` }, STATE_WORDS[state] ?? state);
}

/** A choice of a few, as radio buttons in a row. */
export function segments(legend, options, chosen, onchange) {
  const name = `segment-${legend.replaceAll(/\W/g, "-")}`;
  return h("fieldset", {}, h("legend", { class: "sr" }, legend), h("span", { class: "segments" }, Object.entries(options).map(([value, label]) =>
    h("label", {}, h("input", { type: "radio", name, value, checked: value === chosen, onchange: () => onchange(value) }), label))));
}

/** Save text or a Blob under a name. */
export function save(name, content, type = "text/plain") {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

export function toCsv(rows) {
  const quote = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(quote).join(",")).join("\n") + "\n";
}

/** What the address says after `?`, and how it changes: a link to the page reproduces the view. */
export const view = {
  get: (name, otherwise) => new URLSearchParams(location.search).get(name) ?? otherwise,
  set(name, value) {
    const query = new URLSearchParams(location.search);
    if (value === null || value === "") query.delete(name);
    else query.set(name, value);
    history.replaceState(null, "", `${location.pathname}${query.size ? `?${query}` : ""}${location.hash}`);
  },
};
