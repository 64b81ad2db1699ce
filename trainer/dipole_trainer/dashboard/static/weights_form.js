// The weights of a job's rewards, to be changed while it trains: they count from its next step on, as the server says.

import { describe } from "./actions.js";
import { request, TERMINAL } from "./api.js";
import { formatNumber, h, replace } from "./dom.js";
import { rewardsAt } from "./reward_roles.js";

/** `show(job)` keeps it as the job is, but for what is being typed; `onDone(job)` gets the job as it is after a change. */
export function weightsForm(path, onDone) {
  const fields = h("div", { class: "form-grid" });
  const fault = h("p", { class: "notice bad", role: "alert", hidden: true });
  const send = h("button", { class: "primary" }, "Change the weights");
  const history = h("ul", { class: "small" });
  const said = h("p", { class: "muted small", role: "status" });
  const form = h("form", { class: "stack", onsubmit: change, "aria-labelledby": "weights-title", novalidate: true },
    h("p", { class: "muted small" }, "Below 0 lower scores are better; 0 holds a reward out from there on. A change counts from the next step that begins."),
    fields, fault, h("div", { class: "actions" }, send));
  const element = h("section", { class: "card stack", "aria-labelledby": "weights-title", hidden: true }, h("h2", { id: "weights-title" }, "Weights"), form, said, history);
  const inputs = new Map();
  let edited = false;

  async function change(event) {
    event.preventDefault();
    send.disabled = true;
    fault.hidden = true;
    try {
      const job = await request(`${path}/rewards`, { method: "PATCH", body: { weights: Object.fromEntries([...inputs].map(([name, input]) => [name, input.value.trim() === "" ? null : Number(input.value)])) } });
      edited = false;
      onDone(job);
    } catch (error) {
      fault.hidden = false;
      fault.textContent = describe(error);
    }
    send.disabled = false;
  }

  function show(job) {
    const changes = job.weight_changes ?? [];
    const isOver = TERMINAL.has(job.status);
    const isOpen = !isOver && job.step < job.steps && job.desired !== "cancel" && !job.replay_job && !job.pairs_file;
    element.hidden = !(job.rewards ?? []).length || (!isOpen && !changes.length);
    form.hidden = !isOpen;
    if (!inputs.size) {
      for (const reward of job.rewards ?? []) {
        const id = `weight-${reward.name}`;
        inputs.set(reward.name, h("input", { id, type: "number", step: "any", oninput: () => (edited = true) }));
        fields.append(h("div", { class: "field" }, h("label", { for: id }, reward.name), inputs.get(reward.name)));
      }
    }
    if (!edited) for (const reward of rewardsAt(job, Infinity, { asked: true })) if (inputs.get(reward.name).value !== String(reward.weight)) inputs.get(reward.name).value = String(reward.weight);
    replace(said, !isOver && changes.some((each) => each.step === null) ? "A change waits for the next step to begin." : "");
    replace(history, changes.map((each) => h("li", {}, describeChange(each, isOver))));
  }

  return { element, show };
}

export function describeChange({ step, weights }, isOver = false) {
  const what = Object.entries(weights).map(([name, weight]) => `${name} ×${formatNumber(weight)}`).join(", ");
  if (step !== null) return `${what}, after step ${formatNumber(step)}`;
  return isOver ? `${what}, which no step began with` : `${what}, from the next step on`;
}
