// Tables that are drawn again when what they show has changed, and keep the focus where it was.

import { make } from "./dom.js";

/**
 * columns: [{name, text(row), number?: true}], buttons(row): [{text, label, act, kind?}], key(row): what names a row.
 * `empty` is the sentence shown without rows.
 */
export class Table {
  constructor(root, { caption, columns, key, empty, buttons = () => [] }) {
    Object.assign(this, { root, caption, columns, key, empty, buttons });
    this.drawn = null;
  }

  show(rows) {
    const cells = rows.map((row) => [this.key(row), ...this.columns.map((column) => column.text(row)), this.buttons(row).map(({ text }) => text)]);
    const now = JSON.stringify(cells);
    if (now === this.drawn) return;
    this.drawn = now;
    const focused = this.root.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    this.root.replaceChildren(rows.length ? this.#makeTable(rows) : make("p", { className: "empty", textContent: this.empty }));
    if (focused) this.root.querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus();
  }

  #makeTable(rows) {
    const hasButtons = rows.some((row) => this.buttons(row).length);
    const head = make("tr", {}, ...this.columns.map(({ name, number }) => make("th", { scope: "col", textContent: name, className: number ? "number" : "" })));
    if (hasButtons) head.append(make("td", {}));
    const body = rows.map((row) => {
      const line = make("tr", {});
      for (const [index, { text, number }] of this.columns.entries()) {
        const cell = make(index ? "td" : "th", { textContent: text(row), className: number ? "number" : "" });
        if (!index) cell.scope = "row";
        line.append(cell);
      }
      if (hasButtons) line.append(make("td", { className: "row-buttons" }, ...this.buttons(row).map((button) => this.#makeButton(row, button))));
      return line;
    });
    const table = make("table", {}, make("caption", { className: "visually-hidden", textContent: this.caption }), make("thead", {}, head), make("tbody", {}, ...body));
    return make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: `${this.caption}, table` }, table);
  }

  #makeButton(row, { text, label, act }) {
    const button = make("button", { type: "button", textContent: text, ariaLabel: `${text}: ${label}` });
    button.dataset.name = `${this.key(row)} ${text}`;
    button.addEventListener("click", act);
    return button;
  }
}
