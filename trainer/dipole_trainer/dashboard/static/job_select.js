// A choice among jobs, the newest first. Older ones are asked for when somebody wants them, a page at a time: a platform
// may have thousands.

import { jobName } from "./actions.js";
import { request } from "./api.js";
import { h } from "./dom.js";

const PAGE = 20;
const OLDER = "older"; // no job's id

export class JobSelect {
  /** `none`: what is read while no job is chosen; `describe(job)`: what is read of one; `onChoose(id)`. */
  constructor(id, { none, describe = (job) => `${jobName(job)} · ${job.id}`, onChoose }) {
    this.none = none;
    this.describe = describe;
    this.onChoose = onChoose;
    this.jobs = [];
    this.hasMore = false;
    this.left = new Set();
    this.element = h("select", { id, onchange: () => this.#take() });
  }

  /** The newest page anew; older ones that were asked for stay. */
  async load() {
    const page = await request(`v1/fine_tuning/jobs?limit=${PAGE}`);
    const old = this.jobs.filter((job) => !page.data.some((each) => each.id === job.id));
    if (!this.jobs.length) this.hasMore = page.has_more;
    this.jobs = [...page.data, ...old];
    this.#show();
  }

  /** Leave these ids out, as jobs that are chosen already. */
  leaveOut(ids) {
    this.left = new Set(ids);
    this.#show();
  }

  #show() {
    const options = [["", this.none], ...this.jobs.filter((job) => !this.left.has(job.id)).map((job) => [job.id, this.describe(job)]), ...(this.hasMore ? [[OLDER, "Older jobs …"]] : [])];
    const shown = [...this.element.options].map((option) => [option.value, option.label]);
    if (JSON.stringify(shown) === JSON.stringify(options)) return;
    const chosen = this.element.value;
    this.element.replaceChildren(...options.map(([value, label]) => h("option", { value }, label)));
    this.element.value = options.some(([value]) => value === chosen) ? chosen : "";
  }

  async #take() {
    if (this.element.value !== OLDER) return this.onChoose(this.element.value);
    this.element.value = "";
    const page = await request(`v1/fine_tuning/jobs?limit=100&after=${encodeURIComponent(this.jobs.at(-1).id)}`);
    this.hasMore = page.has_more;
    this.jobs.push(...page.data);
    this.#show();
  }
}
