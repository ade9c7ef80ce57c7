/**
 * Stacked bars over time, as SVG that is drawn for the room there is. The same numbers stand in a table beside it; here one
 * can go over the bars with the pointer, or with the arrow keys, and read each.
 */
import { h } from "./dom.js";
import { fitting } from "./fitting.js";
import { ticks } from "./scale.js";
import { s } from "./svg.js";

/**
 * @typedef {{name: string, values: number[], look?: string}} Series `look`: its colour by the class `<look>-fill`, else by its place
 * @typedef {object} Data
 * @property {string} title what is drawn, in words
 * @property {{label: string, long: string}[]} columns
 * @property {Series[]} series the first lies lowest
 * @property {(value: number) => string} format @property {(value: number) => string} axis short, for the axis
 * @property {boolean} [whole] only whole numbers can be meant
 */

const HEIGHT = 260;
const TOP = 12;
const BOTTOM = 26;
const GAP = 0.28; // of a column
const BESIDE = 10; // from a bar to its numbers
const LABEL_PX = 62; // that a label below the bars needs

export const COLOURS = 8; // classes s1-fill … s8-fill

/** @param {Series} series @param {number} index */
export const lookOf = (series, index) => series.look ?? `s${(index % COLOURS) + 1}`;

export class Chart {
  #data;
  #plot = h("div", { class: "plot", tabindex: 0, role: "group", "aria-roledescription": "chart", "data-testid": "chart" });
  #reading = h("div", { class: "reading", hidden: true });
  #spoken = h("p", { class: "hidden-visually", role: "status" });
  #at = -1;
  #width = 0;
  #thick = 0;
  /** @type {(index: number) => number} */
  #middle = () => 0;

  /** @param {Data} data @param {AbortSignal} signal of the view */
  constructor(data, signal) {
    this.#data = data;
    this.#plot.setAttribute("aria-label", `${data.title}. The arrow keys read one bar after the other; a table with the same numbers follows.`);
    this.node = h("figure", { class: "chart" }, this.#plot, this.#reading, this.#spoken, this.#legend());
    fitting(this.#plot, signal, (width) => this.#draw(width));
    this.#plot.addEventListener("pointermove", (event) => this.#point(event));
    this.#plot.addEventListener("pointerdown", (event) => this.#point(event));
    this.#plot.addEventListener("pointerleave", () => this.#read(-1));
    this.#plot.addEventListener("blur", () => this.#read(-1));
    this.#plot.addEventListener("keydown", (event) => this.#step(event));
  }

  #legend() {
    return h("ul", { class: "legend", "data-testid": "legend" }, ...this.#data.series.map((series, i) =>
      h("li", {}, h("span", { class: `swatch ${lookOf(series, i)}-back`, "aria-hidden": "true" }), series.name)));
  }

  /** @param {number} width */
  #draw(width) {
    this.#width = width;
    const { columns, series, axis, whole } = this.#data;
    const sums = columns.map((_, i) => series.reduce((sum, one) => sum + one.values[i], 0));
    const marks = ticks(Math.max(...sums, 0), 5, whole);
    const most = marks[marks.length - 1];
    const left = 8 + 7 * Math.max(...marks.map((mark) => axis(mark).length));
    const room = width - left - 4;
    const y = (/** @type {number} */ value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / most);
    const step = room / columns.length;
    const thick = this.#thick = Math.min(56, Math.max(1, step * (1 - GAP)));
    this.#middle = (index) => left + step * (index + 0.5);
    const svg = s("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true", focusable: "false" });
    for (const mark of marks) {
      svg.append(
        s("line", { class: mark ? "grid" : "base", x1: left, x2: width, y1: y(mark), y2: y(mark) }),
        s("text", { class: "tick", x: left - 8, y: y(mark) + 4, "text-anchor": "end" }, axis(mark)));
    }
    const every = Math.max(1, Math.ceil(LABEL_PX / step));
    columns.forEach(({ label }, i) => {
      const from = (columns.length - 1) % every; // the last is always named
      const middle = this.#middle(i);
      if (i % every === from) {
        const edge = middle > width - LABEL_PX / 2 ? "end" : "middle";
        svg.append(s("text", { class: "tick", x: edge === "end" ? width : middle, y: HEIGHT - 7, "text-anchor": edge }, label));
      }
      const bar = s("g", { class: "bar", "data-column": i });
      let base = 0;
      series.forEach((one, number) => {
        const value = one.values[i];
        if (value <= 0) return;
        const [upper, lower] = [y(base + value), y(base)];
        base += value;
        bar.append(s("rect", {
          class: `${lookOf(one, number)}-fill`, x: middle - thick / 2, width: thick, y: upper, height: Math.max(0.75, lower - upper - (lower - upper > 3 ? 1 : 0)),
          rx: Math.min(2, thick / 4),
        }));
      });
      svg.append(bar);
    });
    this.#plot.replaceChildren(svg);
    this.#read(-1);
  }

  /** @param {PointerEvent} event */
  #point(event) {
    const x = event.clientX - this.#plot.getBoundingClientRect().left;
    const step = this.#middle(1) - this.#middle(0) || this.#width;
    const index = Math.round((x - this.#middle(0)) / step);
    this.#read(index >= 0 && index < this.#data.columns.length && x > this.#middle(0) - step / 2 ? index : -1);
  }

  /** @param {KeyboardEvent} event */
  #step(event) {
    const last = this.#data.columns.length - 1;
    const to = /** @type {Record<string, number>} */ ({
      ArrowLeft: this.#at < 0 ? last : Math.max(0, this.#at - 1), ArrowRight: Math.min(last, this.#at + 1), Home: 0, End: last, Escape: -1,
    })[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#read(to);
    if (to >= 0) this.#spoken.textContent = this.#words(to);
  }

  /** @param {number} index */
  #words(index) {
    const { columns, series, format } = this.#data;
    const parts = series.filter((one) => one.values[index]).map((one) => `${one.name} ${format(one.values[index])}`);
    return `${columns[index].long}: ${parts.join(", ") || "nothing"}`;
  }

  /** Shows the numbers of a column. @param {number} index -1: of none */
  #read(index) {
    this.#at = index;
    for (const bar of this.#plot.querySelectorAll(".bar")) {
      bar.classList.toggle("dim", index >= 0 && Number(bar.getAttribute("data-column")) !== index);
    }
    this.#reading.hidden = index < 0;
    if (index < 0) return;
    const { columns, series, format } = this.#data;
    const shown = series.map((one, i) => ({ one, i })).filter(({ one }) => one.values[index] > 0).reverse();
    const sum = shown.reduce((total, { one }) => total + one.values[index], 0);
    this.#reading.replaceChildren(
      h("p", { class: "reading-title" }, columns[index].long),
      ...shown.map(({ one, i }) => h("p", {}, h("span", { class: `swatch ${lookOf(one, i)}-back` }), h("span", {}, one.name), h("b", {}, format(one.values[index])))),
      ...(shown.length === 1 ? [] : [h("p", { class: "reading-sum" }, h("span", {}, shown.length ? "Together" : "Nothing"), h("b", {}, shown.length ? format(sum) : ""))]));
    // Beside the bar, on the side where there is more room.
    const [middle, wide] = [this.#middle(index), this.#reading.offsetWidth];
    const beside = middle < this.#width / 2 ? middle + this.#thick / 2 + BESIDE : middle - this.#thick / 2 - BESIDE - wide;
    this.#reading.style.left = `${Math.min(Math.max(beside, 0), this.#width - wide)}px`;
  }
}
