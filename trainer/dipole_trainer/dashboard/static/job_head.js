// The head of each page of a job: its name, state, what may be asked of it, and the way to its other pages.

import { jobName } from "./actions.js";
import { ROOT } from "./api.js";
import { h, replace, stateElement } from "./dom.js";

const TABS = { job: ["Overview", ""], gallery: ["Gallery", "/gallery"], groups: ["Groups", "/groups"] };

/** `show(job, buttons)` fills it; buttons are made anew only when what may be asked has changed. */
export function jobHead(current) {
  const name = h("h1");
  const id = h("span", { class: "muted small mono id" });
  const state = h("span");
  const actions = h("div", { class: "actions" });
  const tabs = h("nav", { class: "tabs", "aria-label": "Pages of the job" });
  const element = h("div", { class: "stack" }, h("div", { class: "head" }, h("div", { class: "what" }, name, id), state, actions), tabs);
  let asked = "";
  return {
    element,
    show(job, buttons = []) {
      name.textContent = jobName(job);
      id.textContent = `${job.id} · ${job.model} · ${job.method?.type ?? ""}`;
      replace(state, stateElement(job.status));
      const now = `${job.status} ${job.desired}`;
      if (now !== asked) actions.replaceChildren(...buttons, h("a", { class: "button", href: new URL(`compare?jobs=${encodeURIComponent(job.id)}`, ROOT).href }, "Compare"));
      asked = now;
      if (!tabs.children.length) {
        tabs.append(...Object.entries(TABS).map(([key, [label, page]]) => h("a", { href: new URL(`jobs/${encodeURIComponent(job.id)}${page}`, ROOT).href, "aria-current": key === current ? "page" : null }, label)));
      }
    },
  };
}
