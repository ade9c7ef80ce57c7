/** How turns ended, what limits refused, and what users said of the answers. */
import { h } from "./dom.js";
import { Figures } from "./figures.js";
import { refreshing, sinceStart } from "./freshness.js";
import * as numbers from "./numbers.js";
import { empty, fill } from "./states.js";
import { copyButton, table } from "./table.js";

/** @param {import("./router.js").Stage} stage */
export async function showOutcomes({ api, body, head, signal }) {
  await refreshing(head, signal, () => fill(body, signal, "Reading the workers' counters…", async () => {
    const figures = await Figures.load(api, signal);
    return [sinceStart(figures), endings(figures), refusals(figures), feedback(figures)];
  }));
}

/** Added up by a key. @template T @param {T[]} items @param {(item: T) => string} key @param {(item: T) => number} value */
function totals(items, key, value) {
  /** @type {Map<string, number>} */
  const found = new Map();
  for (const item of items) found.set(key(item), (found.get(key(item)) ?? 0) + value(item));
  return found;
}

/** @param {Figures} figures */
function endings({ endings: found }) {
  const all = found.reduce((sum, { value }) => sum + value, 0);
  const by = totals(found, ({ labels }) => labels[2], ({ value }) => value);
  const outcomes = /** @type {[string, string][]} */ ([["completed", "Completed"], ["stopped", "Stopped"], ["failed", "Failed"]]);
  found.sort((a, b) => b.value - a.value);
  return panel("How turns ended", "With the finish reason, the stop reason or the error code.", "endings",
    found.length > 0 && copyButton(["tenant", "persona", "outcome", "reason", "turns"], () => found.map(({ labels, value }) => [...labels, value])),
    all === 0 ? [empty("No turn has ended yet")] : [
      h("div", { class: "meter", role: "img", "aria-label": outcomes.map(([name, word]) => `${word} ${numbers.share(by.get(name) ?? 0, all)}`).join(", ") },
        ...outcomes.map(([name]) => part(name, by.get(name) ?? 0))),
      h("ul", { class: "legend" }, ...outcomes.map(([name, word]) =>
        h("li", {}, h("span", { class: `swatch ${name}-back`, "aria-hidden": "true" }), `${word} `, h("b", {}, numbers.count(by.get(name) ?? 0)), ` ${numbers.share(by.get(name) ?? 0, all)}`))),
      table("Turns ended by tenant, persona, outcome and reason", [
        { title: "Reason", head: true }, { title: "Outcome" }, { title: "Turns", right: true }, { title: "Share", right: true }, { title: "Tenant" }, { title: "Persona" },
      ], found.map(({ labels: [tenant, persona, outcome, reason], value }) => [
        h("code", {}, reason), h("span", { class: `badge ${outcome}` }, outcome), numbers.count(value), numbers.share(value, all), tenant, persona,
      ])),
    ]);
}

/** A part of a bar, as wide as its number. @param {string} look @param {number} value */
function part(look, value) {
  const node = h("span", { class: `${look}-back` });
  node.style.flexGrow = String(value);
  return value > 0 ? node : null;
}

/** @param {Figures} figures */
function refusals({ refusals: found }) {
  found.sort((a, b) => b.value - a.value);
  return panel("Limits hit", "Requests that a limit or a budget refused, before anything was charged.", "refusals",
    found.length > 0 && copyButton(["tenant", "limit", "refused"], () => found.map(({ labels, value }) => [...labels, value])),
    found.length === 0 ? [empty("No limit has refused anything")] : [
      table("Requests refused by tenant and limit", [{ title: "Limit", head: true }, { title: "Refused", right: true }, { title: "Tenant" }],
        found.map(({ labels: [tenant, limit], value }) => [h("code", {}, limit), numbers.count(value), tenant])),
    ]);
}

/** @param {Figures} figures */
function feedback({ feedback: found }) {
  found.sort((a, b) => b.count - a.count);
  return panel("Feedback", "Scores lie between −10 and +10. An answer that is judged again counts again.", "feedback",
    found.length > 0 && copyButton(["tenant", "persona", "count", "positive", "neutral", "negative", "mean"], () =>
      found.map((one) => [one.tenant, one.persona, one.count, one.positive, one.neutral, one.negative, one.mean])),
    found.length === 0 ? [empty("Nobody has judged an answer yet")] : [
      table("Feedback by tenant and persona", [
        { title: "Tenant" }, { title: "Persona", head: true }, { title: "Judged", right: true }, { title: "Positive", right: true }, { title: "Neutral", right: true },
        { title: "Negative", right: true }, { title: "Mean score", right: true },
      ], found.map((one) => [
        one.tenant, one.persona, ...[one.count, one.positive, one.neutral, one.negative].map(numbers.count), numbers.points(one.mean),
      ])),
    ]);
}

/** @param {string} title @param {string} text @param {string} testid @param {Node | false} tool @param {(Node | null)[]} content */
function panel(title, text, testid, tool, content) {
  return h("section", { class: "panel", "data-testid": testid },
    h("div", { class: "panel-head" }, h("div", {}, h("h2", {}, title), h("p", {}, text)), tool), ...content);
}
