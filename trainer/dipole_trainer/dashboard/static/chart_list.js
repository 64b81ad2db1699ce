// A page's charts by key: those that are wanted are drawn in their order, those that are not go.

import { align, Chart } from "./charts.js";

export class ChartList {
  /** Charts in `place`; the cursor of one shows in all whose `sync` is the same. */
  constructor(place, sync) {
    this.place = place;
    this.sync = sync;
    this.charts = new Map();
  }

  /** `wanted`: [{key, title, series, note?, tag?}], whose series may have different x; `kind`: "step" or "time". Each has
   * a line at each x of `marks`. */
  show(wanted, kind, marks = []) {
    for (const [key, chart] of this.charts) {
      if (wanted.some((each) => each.key === key)) continue;
      chart.destroy();
      this.charts.delete(key);
    }
    wanted.forEach((each, index) => {
      if (!this.charts.has(each.key)) this.charts.set(each.key, new Chart({ ...each, sync: this.sync }));
      const chart = this.charts.get(each.key);
      if (this.place.children[index] !== chart.element) this.place.insertBefore(chart.element, this.place.children[index] ?? null);
      chart.show({ kind, marks, ...align(each.series) });
    });
  }
}
