/** Percentiles of several rows on one logarithmic axis of seconds. The same numbers stand in a table beside it. */
import { h } from "./dom.js";
import { fitting } from "./fitting.js";
import * as numbers from "./numbers.js";
import { s } from "./svg.js";

const ROWS_MAX = 12;
const ROW = 26;
const TOP = 6;
const BOTTOM = 22;
const WIDTH_MAX = 860;
const NAME_MAX = 200;
const LETTER = 7.2;
const RIGHT = 28;
const MARK = 56; // that a label below needs
const STEPS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000];

/** @typedef {{name: string, points: number[]}} Line p50, p95 and p99, in seconds */

/** @param {string} title @param {Line[]} lines @param {AbortSignal} signal */
export function spread(title, lines, signal) {
  const shown = lines.slice(0, ROWS_MAX);
  const box = h("div", { class: "spread-box" });
  fitting(box, signal, (width) => box.replaceChildren(drawing(title, shown, Math.min(width, WIDTH_MAX))));
  const key = (/** @type {string} */ look, /** @type {string} */ words) => h("li", {}, h("span", { class: `swatch ${look}`, "aria-hidden": "true" }), words);
  return h("figure", { class: "chart spread" }, box,
    h("ul", { class: "legend" }, key("s1-back round-swatch", "p50"), key("s2-back turned-swatch", "p95"), key("s4-back thin-swatch", "p99"),
      lines.length > ROWS_MAX && h("li", {}, `${ROWS_MAX} of ${lines.length} rows`)));
}

/** @param {string} title @param {Line[]} lines @param {number} width */
function drawing(title, lines, width) {
  const left = Math.min(NAME_MAX, width * 0.36);
  const all = lines.flatMap(({ points }) => points).filter((value) => value > 0);
  const low = Math.max(0, STEPS.findLastIndex((step) => step <= Math.min(...all)));
  const high = STEPS.findIndex((step) => step >= Math.max(...all));
  const marks = STEPS.slice(low, (high < 0 ? STEPS.length : Math.max(high, low + 1)) + 1);
  const [from, to] = [Math.log(marks[0]), Math.log(marks[marks.length - 1])];
  const room = width - left - RIGHT;
  const x = (/** @type {number} */ value) => left + room * Math.min(1, Math.max(0, (Math.log(Math.max(value, 1e-9)) - from) / (to - from)));
  const height = TOP + lines.length * ROW + BOTTOM;
  const every = Math.ceil((MARK * (marks.length - 1)) / room);
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: p50, p95 and p99 of each row of the table below` });
  marks.forEach((mark, i) => {
    svg.append(s("line", { class: "grid", x1: x(mark), x2: x(mark), y1: TOP, y2: height - BOTTOM }));
    if (i % every === 0) svg.append(s("text", { class: "tick", x: x(mark), y: height - 6, "text-anchor": "middle" }, numbers.seconds(mark)));
  });
  const letters = Math.max(4, Math.floor((left - 12) / LETTER));
  lines.forEach(({ name, points: [p50, p95, p99] }, i) => {
    const y = TOP + (i + 0.5) * ROW;
    svg.append(
      s("text", { class: "row-name", x: left - 12, y: y + 4, "text-anchor": "end" }, name.length > letters ? `${name.slice(0, letters - 1)}…` : name),
      s("line", { class: "span", x1: x(p50), x2: x(p99), y1: y, y2: y }),
      s("circle", { class: "s1-fill", cx: x(p50), cy: y, r: 5 }),
      s("rect", { class: "s2-fill", x: x(p95) - 4, y: y - 4, width: 8, height: 8, transform: `rotate(45 ${x(p95)} ${y})` }),
      s("rect", { class: "s4-fill", x: x(p99) - 1.5, y: y - 7, width: 3, height: 14, rx: 1 }));
  });
  return svg;
}
