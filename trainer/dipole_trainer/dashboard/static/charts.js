// Charts: a figure with its caption, its legend, the table of the same numbers beside it, and CSV, JSON and PNG of it.
//
//   const chart = new Chart({title: "Loss", note: "…"});
//   chart.show({x, kind: "step" | "time", marks: [x, …], series: [{key, label, values, points, low, high, smooth}]})
//
// uPlot draws. A series is told apart by its dash or its dots as well as by its colour.

import uPlot from "./vendor/uplot.js";
import { formatNumber, formatSeconds, h, save, svg, toCsv } from "./dom.js";

const DASHES = [[], [9, 4], [2, 3], [10, 3, 2, 3], [5, 2], [14, 5]];
const TABLE_ROWS = 100;
const HEIGHT = 200;
const TIME_STEPS = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400, 172800, 604800];
const STEP_STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 1e7, 1e8];
const X_LABELS = { step: "step", time: "time since the start" };
const scheme = matchMedia("(prefers-color-scheme: dark)");

let numbering = 0;

export class Chart {
  constructor({ title, note = "", tag = null, sync }) {
    this.title = title;
    this.sync = sync;
    this.hidden = new Set();
    this.model = null;
    this.plot = null;
    this.shape = "";
    const id = `chart-${(numbering += 1)}`;
    this.note = h("span", { class: "note" }, note);
    this.place = h("div", { class: "plot", tabindex: "0", role: "img", "aria-labelledby": id, onkeydown: (event) => this.#onKey(event) });
    this.legend = h("ul", { class: "legend", "aria-label": "Series" });
    this.table = h("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-labelledby": id });
    this.details = h("details", { ontoggle: () => this.#fillTable() }, h("summary", {}, "Table"), this.table);
    this.element = h("figure", { class: "card", role: "figure", "aria-labelledby": id },
      h("figcaption", {}, h("h3", { id }, title), tag, this.note),
      this.place, this.legend,
      h("div", { class: "under" }, this.details, h("div", { class: "exports" },
        ["CSV", "JSON", "PNG"].map((form) => h("button", { class: "quiet", type: "button", "aria-label": `Save ${title} as ${form}`, onclick: () => this.#export(form) }, form)))));
    this.resize = new ResizeObserver(() => this.plot && this.place.clientWidth && this.plot.setSize({ width: this.place.clientWidth, height: HEIGHT }));
    this.resize.observe(this.place);
    this.onScheme = () => this.plot?.redraw(false);
    scheme.addEventListener("change", this.onScheme);
  }

  /** Draw a model; the plot is made anew only where its series or its x have changed. */
  show(model) {
    this.model = model;
    if (model.note !== undefined) this.note.textContent = model.note;
    this.lines = model.series.flatMap((series, index) => toLines(series, index));
    const shape = JSON.stringify([model.kind, this.lines.map((line) => [line.key, line.role])]);
    const data = [model.x, ...this.lines.map((line) => line.values)];
    if (shape !== this.shape || !this.plot) {
      this.shape = shape;
      this.plot?.destroy();
      this.plot = new uPlot(this.#options(), data, this.place);
      this.#fillLegend();
    } else {
      this.plot.setData(data);
    }
    this.#fillValues(null);
    if (this.details.open) this.#fillTable();
  }

  destroy() {
    this.resize.disconnect();
    scheme.removeEventListener("change", this.onScheme);
    this.plot?.destroy();
    this.element.remove();
  }

  #options() {
    const { kind } = this.model;
    const axis = { stroke: () => css("--muted"), font: "12px system-ui, sans-serif", grid: { stroke: () => css("--grid"), width: 1 }, ticks: { show: false } };
    const bands = this.lines.flatMap((line, index) => (line.role === "high" ? [{ series: [index + 1, index + 2], fill: () => fade(css(`--series-${line.colour}`), 0.16) }] : []));
    return {
      width: this.place.clientWidth || 320,
      height: HEIGHT,
      padding: [10, 14, 0, 4],
      scales: { x: { time: false }, y: { range: (_, low, high) => padRange(low, high) } },
      axes: [
        { ...axis, size: 32, gap: 6, space: 70, values: (_, ticks) => ticks.map((tick) => (kind === "time" ? formatTick(tick) : formatNumber(tick))), ...(kind === "time" ? { incrs: TIME_STEPS } : { incrs: STEP_STEPS }) },
        { ...axis, size: (_, values) => 14 + 7 * Math.max(3, ...(values ?? []).map((value) => value.length)), gap: 6, values: (_, ticks) => formatTicks(ticks) },
      ],
      series: [{}, ...this.lines.map((line) => ({
        label: line.label,
        show: !this.hidden.has(line.key),
        stroke: () => (line.role === "low" || line.role === "high" ? "transparent" : fade(css(`--series-${line.colour}`), line.role === "raw" ? 0.32 : 1)),
        width: line.role === "raw" ? 1 : line.role === "line" ? 2 : 0,
        dash: line.role === "line" ? DASHES[line.colour - 1] : undefined,
        spanGaps: true,
        points: { show: line.role === "line" && line.points, size: 8, width: 1.5, stroke: () => css(`--series-${line.colour}`), fill: () => css("--surface") },
      }))],
      bands,
      legend: { show: false },
      cursor: { sync: { key: this.sync }, points: { size: 7, show: (u, index) => this.lines[index - 1]?.role === "line" ? undefined : null }, drag: { x: true, y: false }, y: false },
      hooks: { setCursor: [(u) => this.#fillValues(u.cursor.idx ?? null)], drawAxes: [(u) => this.#drawMarks(u)] },
    };
  }

  /** A dashed line across the plot at each mark. */
  #drawMarks({ ctx, bbox, valToPos, scales }) {
    ctx.save();
    ctx.strokeStyle = css("--muted");
    ctx.setLineDash([6, 4]);
    for (const mark of this.model.marks ?? []) {
      if (mark < scales.x.min || mark > scales.x.max) continue;
      const left = Math.round(valToPos(mark, "x", true)) + 0.5;
      ctx.beginPath();
      ctx.moveTo(left, bbox.top);
      ctx.lineTo(left, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  }

  #fillLegend() {
    const shown = this.lines.filter((line) => line.role === "line");
    this.legend.replaceChildren(...shown.map((line) => h("li", {}, h("button", {
      class: "quiet", type: "button", "aria-pressed": String(!this.hidden.has(line.key)),
      onclick: (event) => this.#toggle(line.key, event.currentTarget),
    }, sample(line), line.label, h("span", { class: "value" })))));
  }

  #toggle(key, button) {
    const show = this.hidden.has(key);
    if (show) this.hidden.delete(key);
    else this.hidden.add(key);
    button.setAttribute("aria-pressed", String(show));
    this.lines.forEach((line, index) => line.key === key && this.plot.setSeries(index + 1, { show }));
  }

  /** Values under the cursor, or each series' last. */
  #fillValues(at) {
    const values = this.legend.querySelectorAll(".value");
    this.lines.filter((line) => line.role === "line").forEach((line, index) => {
      if (!values[index]) return;
      const value = at === null ? line.values.findLast((each) => each !== null && each !== undefined) : line.values[at];
      values[index].textContent = formatNumber(value ?? null, 4);
    });
  }

  #rows() {
    const { x, kind, series } = this.model;
    const columns = series.flatMap((each) => [
      [each.label, each.values],
      ...(each.low ? [[`${each.label}, 95 % from`, each.low], [`${each.label}, 95 % to`, each.high]] : []),
    ]);
    const rows = x.map((at, index) => [at, ...columns.map(([, values]) => values[index] ?? null)]);
    return { heads: [X_LABELS[kind] + (kind === "time" ? " (s)" : ""), ...columns.map(([label]) => label)], rows: rows.filter((row) => row.slice(1).some((value) => value !== null)) };
  }

  #fillTable() {
    if (!this.model) return;
    const { heads, rows } = this.#rows();
    const newest = rows.slice(-TABLE_ROWS).toReversed();
    this.table.replaceChildren(
      h("table", {},
        h("caption", { class: "sr" }, this.title),
        h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col", class: "number" }, head)))),
        h("tbody", {}, newest.map((row) => h("tr", {}, row.map((value, index) => h(index ? "td" : "th", { class: "number", scope: index ? null : "row" }, formatNumber(value))))))),
      ...(rows.length > newest.length ? [h("p", { class: "muted small" }, `The newest ${newest.length} of ${rows.length} rows; CSV has them all.`)] : []),
    );
  }

  #onKey(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined || !this.plot || !this.model.x.length) return;
    event.preventDefault();
    const last = this.model.x.length - 1;
    const from = this.plot.cursor.idx ?? (move > 0 ? -1 : last + 1);
    const to = Math.min(last, Math.max(0, from + move));
    this.plot.setCursor({ left: this.plot.valToPos(this.model.x[to], "x"), top: 20 });
  }

  #export(form) {
    const name = this.title.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-");
    const { heads, rows } = this.#rows();
    if (form === "CSV") save(`${name}.csv`, toCsv([heads, ...rows]), "text/csv");
    if (form === "JSON") save(`${name}.json`, JSON.stringify({ title: this.title, rows: rows.map((row) => Object.fromEntries(row.map((value, index) => [heads[index], value]))) }, null, 1), "application/json");
    if (form === "PNG") this.#draw().toBlob((blob) => save(`${name}.png`, blob));
  }

  /** The chart with its title and legend, as a canvas of its own. */
  #draw() {
    const source = this.plot.ctx.canvas;
    const ratio = source.width / this.plot.width;
    const canvas = h("canvas", { width: source.width, height: source.height + Math.round(64 * ratio) });
    const pen = canvas.getContext("2d");
    pen.fillStyle = css("--surface");
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.scale(ratio, ratio);
    pen.fillStyle = css("--text");
    pen.font = "600 15px system-ui, sans-serif";
    pen.fillText(this.title, 14, 24);
    pen.font = "12px system-ui, sans-serif";
    let left = 14;
    for (const line of this.lines.filter((each) => each.role === "line" && !this.hidden.has(each.key))) {
      pen.strokeStyle = css(`--series-${line.colour}`);
      pen.lineWidth = 2;
      pen.setLineDash(DASHES[line.colour - 1]);
      pen.beginPath();
      pen.moveTo(left, 44);
      pen.lineTo(left + 24, 44);
      pen.stroke();
      pen.fillText(line.label, left + 30, 48);
      left += 46 + pen.measureText(line.label).width;
    }
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.drawImage(source, 0, canvas.height - source.height);
    return canvas;
  }
}

/** What uPlot draws for a series: its band, its raw values behind, and its line. */
function toLines(series, index) {
  const base = { key: series.key, label: series.label, colour: (series.colour ?? (index % 6) + 1), points: Boolean(series.points) };
  const lines = [];
  if (series.high) lines.push({ ...base, role: "high", values: series.high }, { ...base, role: "low", values: series.low });
  const smooth = series.smooth > 0 && !series.points;
  if (smooth) lines.push({ ...base, role: "raw", values: series.values });
  lines.push({ ...base, role: "line", values: smooth ? average(series.values, series.smooth) : series.values });
  return lines;
}

/** Exponential moving average, corrected for its start; holes stay holes. */
function average(values, weight) {
  let total = 0;
  let mass = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return null;
    total = weight * total + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return total / mass;
  });
}

/** Several series on one x: the union of theirs, with holes. Each has `x` and `values`, and maybe `low` and `high`. */
export function align(parts) {
  const x = [...new Set(parts.flatMap((part) => part.x))].sort((a, b) => a - b);
  const places = new Map(x.map((value, index) => [value, index]));
  return {
    x,
    series: parts.map((part) => {
      const spread = (values) => {
        const found = new Array(x.length).fill(null);
        part.x.forEach((value, index) => (found[places.get(value)] = values[index] ?? null));
        return found;
      };
      return { ...part, values: spread(part.values), ...(part.low ? { low: spread(part.low), high: spread(part.high) } : {}) };
    }),
  };
}

function sample(line) {
  const stroke = `var(--series-${line.colour})`;
  const path = svg("line", { x1: 1, x2: 27, y1: 6, y2: 6, "stroke-width": 2, "stroke-dasharray": DASHES[line.colour - 1].join(" ") || null });
  const dot = svg("circle", { cx: 14, cy: 6, r: 3.5, "stroke-width": 1.5 });
  path.style.stroke = dot.style.stroke = stroke;
  dot.style.fill = "var(--surface)";
  return svg("svg", { width: 28, height: 12, viewBox: "0 0 28 12", "aria-hidden": "true" }, path, line.points ? dot : null);
}

function padRange(low, high) {
  if (low === null || high === null || low === undefined) return [0, 1];
  if (low === 0 && high === 0) return [0, 1];
  if (low === high) return [low - Math.max(Math.abs(low) * 0.1, 1e-9), high + Math.max(Math.abs(high) * 0.1, 1e-9)];
  const room = (high - low) * 0.08;
  return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
}

/** With as many digits as tell neighbours apart: 1, 1.0005, 1.001. */
function formatTicks(ticks) {
  for (let digits = 3; digits < 8; digits += 1) {
    const texts = ticks.map((tick) => formatNumber(tick, digits));
    if (new Set(texts).size === ticks.length) return texts;
  }
  return ticks.map((tick) => formatNumber(tick, 8));
}

/** 90 -> "1 min 30 s", 3600 -> "1 h": no parts that are 0. */
function formatTick(seconds) {
  return formatSeconds(seconds).replace(/ 0 (s|min|h)$/, "");
}

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function fade(colour, share) {
  return `${colour}${Math.round(share * 255).toString(16).padStart(2, "0")}`;
}
