// A form that starts a job, made from the schema of REST: a knob that is declared there shows up here by itself.
//
// What is left empty is left out of the request, so that the server's defaults hold; they are shown in grey.

import { describe, hasInlineEvaluation, INLINE_EVALUATION, jobLink, toRequest } from "./actions.js";
import { ApiError, begin, request, ROOT, showConnection } from "./api.js";
import { h, save, view } from "./dom.js";

const main = document.getElementById("main");
const FIRST = ["steps", "candidates", "prompts_per_step", "seed"]; // beside the method; the others are further down
const SPECIAL = new Set(["prompts", "training_file", "validation_file", "rewards", "method", "model", "suffix", "hyperparameters", "integrations", "metadata", ...FIRST]);
const LABELS = { suffix: "Name", model: "Base model", "method.type": "Method" };
const SUGGESTED = 20; // checkpoints that the field of the model proposes; it takes any
let schemas = {};

begin(start);

async function start() {
  const from = view.get("from", null);
  const [document_, rewards, models, files, copied] = await Promise.all([
    request("openapi.json"), request("v1/rewards"), request(`v1/models?limit=${SUGGESTED}`), request("v1/files?limit=100"),
    from ? request(`v1/fine_tuning/jobs/${encodeURIComponent(from)}`) : null,
  ]);
  schemas = document_.components.schemas;
  const body = copied ? await toRequest(copied) : {};
  showConnection("live", "");
  main.append(h("div", { class: "head" }, h("div", { class: "what" }, h("h1", {}, "New job"), copied ? h("span", { class: "muted small" }, `as ${copied.suffix ?? copied.id} is configured`) : null)), copied && hasInlineEvaluation(copied) ? h("p", { class: "notice warn" }, INLINE_EVALUATION) : "", buildForm(body, { rewards: rewards.data, models: models.data, files: files.data }));
}

function buildForm(body, { rewards, models, files }) {
  const properties = schemas.JobRequest.properties;
  const parts = [];
  const put = (name, field) => { parts.push([name, field]); return field.element; };
  const plain = (name) => put(name, makeField(name, properties[name], body[name]));
  const list = h("datalist", { id: "models" }, models.map((model) => h("option", { value: model.id })));
  const method = methodField(body.method);
  const fault = h("div", { class: "notice bad stack", role: "alert", tabindex: "-1", hidden: true });
  const what = h("section", { class: "card stack", "aria-labelledby": "what-title" }, h("h2", { id: "what-title" }, "What is trained"),
    h("div", { class: "form-grid" }, plain("suffix"), plain("model"), list),
    h("div", { class: "form-grid wide" },
      put("prompts", promptsField("prompts", "Prompts, one a line", properties.prompts.description, body.prompts)),
      put("evaluation prompts", promptsField("evaluation.prompts", "Held-out prompts, one a line", "Evaluations, samples and the gallery are of these.", undefined))),
    h("div", { class: "form-grid" },
      put("training_file", fileField("training_file", properties.training_file, files, body.training_file)),
      put("validation_file", fileField("validation_file", properties.validation_file, files, body.validation_file))));
  what.querySelector("[name='model']").setAttribute("list", "models");
  const rewardsPart = rewardsField(rewards, body.rewards);
  const judged = h("section", { class: "card stack", "aria-labelledby": "rewards-title" }, h("h2", { id: "rewards-title" }, "Rewards"), rewardsPart.element);
  parts.push(["rewards", rewardsPart]);
  const how = h("section", { class: "card stack", "aria-labelledby": "how-title" }, h("h2", { id: "how-title" }, "How"), h("div", { class: "form-grid" }, FIRST.map(plain)), put("method", method));
  const others = Object.keys(properties).filter((name) => !SPECIAL.has(name));
  const groups = others.filter((name) => inner(properties[name]).properties);
  const single = others.filter((name) => !groups.includes(name));
  const more = h("section", { class: "card stack", "aria-labelledby": "more-title" }, h("h2", { id: "more-title" }, "Everything else"), h("div", { class: "form-grid" }, single.map(plain)), groups.map((name) => h("details", { open: false }, h("summary", {}, title(name)), plain(name))));
  const collect = () => {
    const found = {};
    for (const [name, field] of parts) {
      const value = field.read();
      if (value === undefined) continue;
      if (name === "evaluation prompts") found.evaluation = { ...found.evaluation, prompts: value };
      else if (name === "evaluation") found.evaluation = { ...value, ...found.evaluation };
      else found[name] = value;
    }
    return found;
  };
  const start_ = h("button", { class: "primary" }, "Start the job");
  const form = h("form", { class: "stack", novalidate: true, onsubmit: async (event) => {
    event.preventDefault();
    for (const field of form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
    start_.disabled = true;
    try {
      const made = await request("v1/fine_tuning/jobs", { method: "POST", body: collect() });
      location.assign(new URL(jobLink(made), ROOT));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      start_.disabled = false;
      fault.hidden = false;
      fault.replaceChildren(...describe(error).split("\n").map((line) => h("p", {}, line)));
      const wrong = error.errors.map((each) => form.querySelector(`[name="${CSS.escape(each.field)}"]`)).filter(Boolean);
      for (const field of wrong) {
        field.setAttribute("aria-invalid", "true");
        field.closest("details")?.setAttribute("open", "");
      }
      (wrong[0] ?? fault).focus();
    }
  } }, what, judged, how, more, fault, h("div", { class: "actions" }, start_, h("button", { type: "button", onclick: () => save("job.json", JSON.stringify(collect(), null, 2), "application/json") }, "Save as JSON")));
  return form;
}

// ---- fields ----

function title(name) {
  const last = name.split(".").at(-1);
  return LABELS[name] ?? (last[0].toUpperCase() + last.slice(1)).replaceAll("_", " ");
}

/** A schema without its `null`, and with what it refers to. */
function inner(schema) {
  const found = schema.anyOf?.find((each) => each.type !== "null") ?? schema;
  return found.$ref ? { ...schemas[found.$ref.split("/").at(-1)], ...(schema.description ? { description: schema.description } : {}) } : { ...schema, ...found };
}

function labelled(name, schema, control) {
  const id = `field-${name.replaceAll(/\W/g, "-")}`;
  control.id = id;
  control.name = name;
  const help = schema.description ? h("span", { class: "muted small", id: `${id}-help` }, schema.description.replaceAll("`", "")) : null;
  if (help) control.setAttribute("aria-describedby", help.id);
  return h("div", { class: "field" }, h("label", { for: id }, title(name)), control, help);
}

/** {element, read}: `read` gives the value, undefined where the default is to hold. */
function makeField(name, given, value) {
  const schema = inner(given);
  if (schema.properties) {
    const children = Object.entries(schema.properties).filter(([key]) => !(name === "evaluation" && key === "prompts"))
      .map(([key, each]) => [key, makeField(`${name}.${key}`, each, value?.[key])]);
    return {
      element: h("fieldset", { class: "stack" }, h("legend", { class: "sr" }, title(name)), schema.description ? h("p", { class: "muted small" }, schema.description.replaceAll("`", "")) : null, h("div", { class: "form-grid" }, children.map(([, field]) => field.element))),
      read: () => {
        const found = Object.fromEntries(children.map(([key, field]) => [key, field.read()]).filter(([, each]) => each !== undefined));
        return Object.keys(found).length ? found : undefined;
      },
    };
  }
  const shownDefault = given.default ?? schema.default;
  const placeholder = shownDefault === undefined || shownDefault === null ? "" : Array.isArray(shownDefault) ? shownDefault.join(", ") : String(shownDefault);
  if (schema.enum || schema.type === "boolean") {
    const options = schema.enum ?? ["true", "false"];
    const select = h("select", {}, h("option", { value: "" }, placeholder ? `default: ${placeholder}` : "default"), options.map((each) => h("option", { value: each }, each)));
    select.value = value === undefined ? "" : String(value);
    return { element: labelled(name, schema, select), read: () => (select.value === "" ? undefined : schema.type === "boolean" ? select.value === "true" : select.value) };
  }
  const isList = schema.type === "array";
  const isNumber = ["integer", "number"].includes(schema.type);
  const input = h("input", { type: "text", inputmode: isNumber ? "decimal" : null, placeholder, autocomplete: "off", spellcheck: "false" });
  if (value !== undefined) input.value = isList ? value.join(", ") : typeof value === "object" ? JSON.stringify(value) : String(value);
  const read = () => {
    const text = input.value.trim();
    if (text === "") return undefined;
    if (isList) return text.split(",").map((each) => toScalar(each.trim(), ["number", "integer"].includes((schema.items ?? schema.prefixItems?.[0])?.type)));
    return toScalar(text, isNumber);
  };
  return { element: labelled(name, schema, input), read };
}

/** A number where one is wanted; else the text, which the server refuses by its field. */
function toScalar(text, isNumber) {
  const number = Number(text);
  return isNumber && text !== "" && Number.isFinite(number) ? number : text;
}

function promptsField(name, label, description, value) {
  const text = h("textarea", { rows: "5", class: "short" });
  text.value = (value ?? []).map((each) => each.prompt).join("\n");
  const element = labelled(name, { description }, text);
  element.querySelector("label").textContent = label;
  return { element, read: () => {
    const lines = text.value.split("\n").map((line) => line.trim()).filter(Boolean);
    return lines.length ? lines.map((prompt) => ({ prompt })) : undefined;
  } };
}

function fileField(name, schema, files, value) {
  const known = files.some((file) => file.id === value) || !value ? files : [{ id: value, filename: value, lines: "?" }, ...files];
  const select = h("select", {}, h("option", { value: "" }, "none"), known.map((file) => h("option", { value: file.id }, `${file.filename} · ${file.lines} ${file.kind ?? "lines"} · ${file.id}`)));
  select.value = value ?? "";
  return { element: labelled(name, schema, select), read: () => select.value || undefined };
}

function rewardsField(rewards, value) {
  if (!rewards.length) return { element: h("p", { class: "muted" }, "No endpoint is registered, so none can be chosen here."), read: () => value };
  const chosen = new Map((value ?? []).map((each) => [each.name, each]));
  const rows = rewards.map((reward) => {
    const given = chosen.get(reward.name);
    const use = h("input", { type: "checkbox", name: `reward ${reward.name}`, checked: Boolean(given), "aria-label": `Use ${reward.name}` });
    const weight = h("input", { type: "text", inputmode: "decimal", class: "narrow", placeholder: "1", "aria-label": `Weight of ${reward.name}`, oninput: () => (use.checked = true) });
    if (given) weight.value = String(given.weight ?? 1);
    return { reward, use, weight, given };
  });
  const strangers = (value ?? []).filter((each) => !rewards.some((reward) => reward.name === each.name)); // by address
  return {
    element: h("div", { class: "scroll", tabindex: "0" }, h("table", {}, h("thead", {}, h("tr", {}, ["Use", "Reward", "Weight", "Address"].map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, h("td", {}, row.use), h("th", { scope: "row" }, row.reward.name), h("td", {}, row.weight), h("td", { class: "mono" }, row.reward.url))))),
    h("p", { class: "muted small" }, "A weight of 0 holds a reward out: it is watched, and never trained on.")),
    read: () => {
      const found = rows.filter((row) => row.use.checked).map((row) => ({ ...(row.given ?? {}), name: row.reward.name, ...(row.weight.value.trim() === "" ? {} : { weight: toScalar(row.weight.value.trim(), true) }) }));
      return found.length || strangers.length ? [...found, ...strangers] : undefined;
    },
  };
}

/** The method's name, and the settings of the one that is chosen. */
function methodField(value) {
  const properties = schemas.MethodSpec.properties;
  const kind = makeField("method.type", properties.type, value?.type);
  const settings = Object.fromEntries(properties.type.enum.map((name) => [name, makeField(`method.${name}`, properties[name], value?.[name])]));
  const select = kind.element.querySelector("select");
  const current = () => select.value || properties.type.default;
  const details = h("details", {}, h("summary", {}, "Settings of the method"), Object.values(settings).map((each) => each.element));
  const show = () => Object.entries(settings).forEach(([name, each]) => (each.element.hidden = name !== current()));
  select.addEventListener("change", show);
  show();
  return { element: h("div", { class: "stack" }, h("div", { class: "form-grid" }, kind.element), details), read: () => {
    const chosen = settings[current()].read();
    return select.value === "" && !chosen ? undefined : { type: current(), ...(chosen ? { [current()]: chosen } : {}) };
  } };
}
