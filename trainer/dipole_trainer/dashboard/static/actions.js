// What one can ask of a job: pause, resume, cancel, clone; each a request to REST, whose refusal is shown as it is said.

import { request, TERMINAL } from "./api.js";
import { h } from "./dom.js";

const PATH = "v1/fine_tuning/jobs";
// what a job says of itself, and a new one is not asked with
const OPENAI_FIELDS = ["hyperparameters", "integrations"];

export function jobName(job) {
  return job.suffix ?? job.model;
}

export function jobLink(job, page = "") {
  return `jobs/${encodeURIComponent(job.id)}${page}`;
}

/** Buttons for what may be asked now. `onDone(job)` gets the job as it is then. */
export function actionButtons(job, root, onDone) {
  const ask = (verb) => async ({ currentTarget: button }) => {
    button.disabled = true;
    try {
      onDone(await request(`${PATH}/${encodeURIComponent(job.id)}/${verb}`, { method: "POST" }));
    } catch (error) {
      await tell(`The job could not be asked to ${verb}`, error.message);
      button.disabled = false;
    }
  };
  const asked = job.desired;
  const button = (label, verb, more = {}) => h("button", { type: "button", "data-action": verb, onclick: ask(verb), ...more }, label);
  const open = !TERMINAL.has(job.status);
  return [
    open && job.status !== "paused" && (asked === "pause" ? h("button", { type: "button", disabled: true }, "Pausing …") : asked === "run" && button("Pause", "pause")),
    (job.status === "paused" || job.status === "failed" || (open && asked === "pause")) && button("Resume", "resume"),
    open && (asked === "cancel" ? h("button", { type: "button", disabled: true }, "Cancelling …") : h("button", { type: "button", "data-action": "cancel", class: "danger", onclick: async (event) => {
      const target = event.currentTarget;
      if (await confirm(`Cancel ${jobName(job)}?`, "It stops at the next step for good. Its checkpoints, curves and images stay.", "Cancel the job")) await ask("cancel")({ currentTarget: target });
    } }, "Cancel")),
    h("button", { type: "button", "data-action": "clone", onclick: () => cloneJob(job, root) }, "Clone"),
  ].filter(Boolean);
}

/** The request that would make the same job again: the fields of `JobRequest` that the job has. */
export async function toRequest(job) {
  const document = await request("openapi.json");
  const schemas = document.components.schemas;
  const body = {};
  for (const name of Object.keys(schemas.JobRequest.properties)) {
    const value = job[name];
    if (value === undefined || value === null || value === "" || OPENAI_FIELDS.includes(name)) continue;
    body[name] = structuredClone(value);
  }
  if (body.evaluation) {
    const known = resolve(schemas, schemas.JobRequest.properties.evaluation).properties;
    body.evaluation = Object.fromEntries(Object.entries(body.evaluation).filter(([name, value]) => name in known && value !== null));
    if (!job.evaluation.prompt_count || hasInlineEvaluation(job)) delete body.evaluation;
  }
  if (body.method) body.method = { type: job.method.type, ...(job.method[job.method.type] ? { [job.method.type]: job.method[job.method.type] } : {}) };
  if (body.replay_job || body.pairs_file) delete body.training_file;
  return body;
}

/** Whether its held-out prompts came with the request: REST keeps their number, and not the prompts. */
export function hasInlineEvaluation(job) {
  return Boolean(job.evaluation?.prompt_count) && !job.validation_file;
}

export const INLINE_EVALUATION = "Its held-out prompts came with its request and cannot be read back: give validation_file, or evaluation.prompts, for the new job to be evaluated too.";

function resolve(schemas, schema) {
  const reference = schema.$ref ?? schema.allOf?.[0]?.$ref ?? schema.anyOf?.find((each) => each.$ref)?.$ref;
  return reference ? schemas[reference.split("/").at(-1)] : schema;
}

/** A dialog with the request that made the job, to be changed and sent. */
async function cloneJob(job, root) {
  let body;
  try {
    body = await toRequest(job);
  } catch (error) {
    return tell("The job cannot be cloned", error.message);
  }
  const text = h("textarea", { id: "clone-body", class: "mono", spellcheck: "false", "aria-describedby": "clone-help" });
  text.value = JSON.stringify(body, null, 2);
  const fault = h("p", { class: "notice bad", role: "alert", hidden: true });
  const dialog = h("dialog", { "aria-labelledby": "clone-title" }, h("form", {
    onsubmit: async (event) => {
      event.preventDefault();
      try {
        const made = await request(PATH, { method: "POST", body: JSON.parse(text.value) });
        location.assign(new URL(jobLink(made), root));
      } catch (error) {
        fault.hidden = false;
        fault.textContent = error instanceof SyntaxError ? `This is not JSON: ${error.message}.` : describe(error);
      }
    },
  },
  h("h2", { id: "clone-title" }, `Clone ${jobName(job)}`),
  h("p", { id: "clone-help", class: "muted" }, "The request that makes the same job again. Change what should differ, the seed for one."),
  hasInlineEvaluation(job) ? h("p", { class: "notice warn" }, INLINE_EVALUATION) : null,
  h("label", { for: "clone-body", class: "sr" }, "Request as JSON"), text, fault,
  h("div", { class: "actions" }, h("a", { class: "button", href: new URL(`new?from=${encodeURIComponent(job.id)}`, root).href }, "As a form"), h("button", { type: "button", onclick: () => dialog.close() }, "Close"), h("button", { class: "primary" }, "Start the job"))));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

/** An ApiError in a sentence, with each field it names. */
export function describe(error) {
  const fields = (error.errors ?? []).map((each) => `${each.field}: ${each.message}`).filter((line) => !error.message.includes(line));
  return [error.message, ...fields].join("\n");
}

function confirm(title, text, label) {
  return new Promise((resolve_) => {
    const dialog = h("dialog", { "aria-labelledby": "confirm-title" }, h("form", { method: "dialog" },
      h("h2", { id: "confirm-title" }, title), h("p", {}, text),
      h("div", { class: "actions" }, h("button", { value: "no" }, "Keep it running"), h("button", { value: "yes", class: "danger" }, label))));
    dialog.addEventListener("close", () => {
      resolve_(dialog.returnValue === "yes");
      dialog.remove();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

function tell(title, text) {
  return new Promise((resolve_) => {
    const dialog = h("dialog", { "aria-labelledby": "tell-title" }, h("form", { method: "dialog" },
      h("h2", { id: "tell-title" }, title), h("p", { role: "alert" }, text), h("div", { class: "actions" }, h("button", { class: "primary" }, "Close"))));
    dialog.addEventListener("close", () => { dialog.remove(); resolve_(); });
    document.body.append(dialog);
    dialog.showModal();
  });
}
