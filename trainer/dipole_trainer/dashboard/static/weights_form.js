// The weights of a job's rewards, to be changed while it trains: they count from its next step on, as the server says.

import { describe } from "./actions.js";
import { request, TERMINAL } from "./api.js";
import { formatNumber, h, replace } from "./dom.js";
import { rewardsAt } from "./reward_roles.js";

const ENDED_FOR_GOOD = new Set(["succeeded", "cancelled"]); // a failed job can be resumed, and its next step begin

/** `show(job)` keeps it as the job is, but for what was typed and is not sent; `onDone(job)` gets the job as it is after a change. */
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
  const edited = new Set(); // names of the rewards whose weight was typed here: others change them too

  async function change(event) {
    event.preventDefault();
    const sent = new Map([...edited].map((name) => [name, inputs.get(name).value]));
    if (!sent.size) return complain("No weight was changed here, so there is nothing to send.");
    send.disabled = true;
    fault.hidden = true;
    try {
      const weights = Object.fromEntries([...sent].map(([name, text]) => [name, text.trim() === "" ? null : Number(text)]));
      const job = await request(`${path}/rewards`, { method: "PATCH", body: { weights } });
      for (const [name, text] of sent) if (inputs.get(name).value === text) edited.delete(name); // not typed anew meanwhile
      onDone(job);
    } catch (error) {
      complain(describe(error));
    }
    send.disabled = false;
  }

  function complain(sentence) {
    fault.hidden = false;
    fault.textContent = sentence;
  }

  function show(job) {
    const changes = job.weight_changes ?? [];
    const hasNextStep = !TERMINAL.has(job.status) && job.step < job.steps;
    const isOpen = hasNextStep && job.desired !== "cancel" && !job.replay_job && !job.pairs_file;
    element.hidden = !(job.rewards ?? []).length || (!isOpen && !changes.length);
    form.hidden = !isOpen;
    if (!inputs.size) {
      for (const reward of job.rewards ?? []) {
        const id = `weight-${reward.name}`;
        inputs.set(reward.name, h("input", { id, type: "number", step: "any", oninput: () => edited.add(reward.name) }));
        fields.append(h("div", { class: "field" }, h("label", { for: id }, reward.name), inputs.get(reward.name)));
      }
    }
    for (const { name, weight } of rewardsAt(job, Infinity, { asked: true })) {
      if (!edited.has(name) && inputs.get(name).value !== String(weight)) inputs.get(name).value = String(weight);
    }
    const waits = hasNextStep && changes.some((each) => each.step === null);
    replace(said, waits ? "A change waits for the next step to begin." : "");
    replace(history, changes.map((each) => h("li", {}, describeChange(each, ENDED_FOR_GOOD.has(job.status)))));
  }

  return { element, show };
}

export function describeChange({ step, weights }, isOver = false) {
  const what = Object.entries(weights).map(([name, weight]) => `${name} ×${formatNumber(weight)}`).join(", ");
  if (step !== null) return `${what}, after step ${formatNumber(step)}`;
  return isOver ? `${what}, which no step began with` : `${what}, from the next step on`;
}
