/** How long one waits: for the first text, between two pieces, for the whole answer. Percentiles a persona. */
import { h } from "./dom.js";
import { BETWEEN, DURATION, Figures, FIRST_TEXT } from "./figures.js";
import * as numbers from "./numbers.js";
import { sinceStart, refreshing } from "./freshness.js";
import { spread } from "./spread.js";
import { empty, fill } from "./states.js";
import { copyButton, table } from "./table.js";
import { choice } from "./range.js";

/** @typedef {{labels: string[], histogram: import("./histogram.js").Histogram}} Row */

const PARTS = /** @type {const} */ ([
  [FIRST_TEXT, "Time to first text", "From when a message is sent to Hyperleap to the first text of its answer."],
  [BETWEEN, "Time between two pieces", "While an answer is being written."],
  [DURATION, "Whole turn", "From its start to its ending, however it ended."],
]);
const PERCENTILES = [0.5, 0.95, 0.99];

/** @param {import("./router.js").Stage} stage */
export async function showLatency({ api, body, head, choices, choose, signal }) {
  const by = choices.get("by") === "tenant" ? "tenant" : "persona";
  head.append(choice("Rows", { persona: "By persona", tenant: "By tenant" }, by, (value) => choose({ by: value })));
  const labels = by === "tenant" ? ["tenant"] : ["tenant", "persona"];
  await refreshing(head, signal, () => fill(body, signal, "Reading the workers' histograms…", async () => {
    const figures = await Figures.load(api, signal);
    if (!figures.histograms(DURATION, []).length) {
      return [empty("No turn has ended yet", "Percentiles appear here with the first answers."), sinceStart(figures)];
    }
    return [sinceStart(figures, "Percentiles are estimated from the buckets of histograms."), ...PARTS.map(([name, title, text]) => section(title, text, labels, figures.histograms(name, labels), signal))];
  }));
}

/** @param {string} title @param {string} text @param {string[]} labels @param {Row[]} rows @param {AbortSignal} signal */
function section(title, text, labels, rows, signal) {
  rows.sort((a, b) => b.histogram.count - a.histogram.count);
  const percentiles = rows.map(({ histogram }) => PERCENTILES.map((q) => histogram.quantile(q)));
  const names = rows.map((row) => row.labels.join(" / "));
  const shown = (/** @type {{value: number, above: boolean}} */ { value, above }) => `${above ? "> " : ""}${numbers.seconds(value)}`;
  return h("section", { class: "panel", "data-testid": `latency-${PARTS.findIndex(([, name]) => name === title)}` },
    h("div", { class: "panel-head" }, h("div", {}, h("h2", {}, title), h("p", {}, text)),
      rows.length > 0 && copyButton([...labels, "count", "mean_s", "p50_s", "p95_s", "p99_s"], () => rows.map(({ labels: own, histogram }, i) =>
        [...own, histogram.count, histogram.mean, ...percentiles[i].map(({ value }) => value)]))),
    ...(rows.length
      ? [
        spread(title, rows.map((_, i) => ({ name: names[i], points: percentiles[i].map(({ value }) => value) })), signal),
        table(`${title}: percentiles`, [
          ...labels.map((label, i) => ({ title: label === "tenant" ? "Tenant" : "Persona", head: i === labels.length - 1 })),
          ...["p50", "p95", "p99", "Mean", "Count"].map((heading) => ({ title: heading, right: true })),
        ], rows.map(({ labels: own, histogram }, i) => [
          ...own, ...percentiles[i].map(shown), numbers.seconds(histogram.mean), numbers.count(histogram.count)])),
      ]
      : [empty("Nothing measured yet")]));
}
