/** Tokens, cost and turns over time, by tenant or persona. */
import { Chart } from "./chart.js";
import { button, h } from "./dom.js";
import { grouped, sumOf } from "./ledger.js";
import * as numbers from "./numbers.js";
import { choice, rangeOf, rangePicker } from "./range.js";
import { loadUsage } from "./settled.js";
import { empty, fill } from "./states.js";
import { copyButton, table } from "./table.js";

/** @typedef {import("./ledger.js").Row} Row */
/** @typedef {ReturnType<typeof sumOf>} Sum */

const SERIES_MAX = 7; // what is smaller is drawn together
const BY = /** @type {Record<string, string>} */ ({ tenant: "By tenant", persona: "By persona", outcome: "By outcome" });
const OUTCOMES = /** @type {const} */ (["completed", "stopped", "failed"]);

/** @param {import("./router.js").Stage} stage */
export async function showUsage({ api, body, head, choices, choose, address, kept, again, signal }) {
  const range = rangeOf(choices);
  const by = Object.hasOwn(BY, choices.get("by") ?? "") ? String(choices.get("by")) : "tenant";
  const only = choices.get("tenant") ?? "";
  head.append(rangePicker(range, choose), button("Refresh", "small quiet", again, { icon: "retry", testid: "refresh" }));
  const key = JSON.stringify([range.step, range.from, range.to, only]);
  await fill(body, signal, "Adding up the ledger…", async () => {
    if (kept.key !== key) Object.assign(kept, { key, answer: await loadUsage(api, range, only, signal) });
    const { rows, note } = /** @type {{rows: Row[], note: string}} */ (kept.answer); // another drawing of it asks nobody
    const all = sumOf(rows);
    const currencies = [...all.cost.keys()].sort();
    const measures = measuresOf(currencies, by, range.step);
    const measure = measures[choices.get("show") ?? ""] ? String(choices.get("show")) : Object.keys(measures)[0];
    const filter = only && h("p", { class: "filter" }, "Tenant ", h("b", {}, only), " only. ", h("a", { href: address({ tenant: "", by: "" }) }, "Show all"));
    if (!rows.length) return [filter, empty("Nothing was settled in this time", "Every turn is settled when it ends, within minutes where its tokens must be looked up.")];
    return [
      filter,
      cards(all),
      h("section", { class: "panel", "data-testid": "usage-chart" },
        h("div", { class: "panel-head" }, h("h2", {}, measures[measure].title),
          h("div", { class: "choices" },
            choice("What is drawn", Object.fromEntries(Object.entries(measures).map(([name, { word }]) => [name, word])), measure, (value) => choose({ show: value })),
            choice("Groups", BY, by, (value) => choose({ by: value })))),
        drawn(rows, range, by, measures[measure], signal),
        note && h("p", { class: "note" }, note)),
      groups(rows, by === "outcome" && !only ? "tenant" : only ? "persona" : by, currencies, (tenant) => address({ tenant, by: "persona" })),
      steps(rows, range, currencies),
    ];
  });
}

/**
 * @typedef {{word: string, title: string, of: (sum: Sum) => number, format: (value: number) => string, axis: (value: number) => string, whole: boolean}} Measure
 * @param {string[]} currencies @param {string} by @param {"hour" | "day"} step
 * @returns {Record<string, Measure>}
 */
function measuresOf(currencies, by, step) {
  const a = step === "hour" ? "an hour" : "a day";
  const turns = { word: "Turns", title: `Turns ${a}`, of: (/** @type {Sum} */ sum) => sum.turns, format: numbers.count, axis: numbers.compact, whole: true };
  if (by === "outcome") return { turns };
  return {
    tokens: { word: "Tokens", title: `Tokens ${a}`, of: (sum) => sum.total, format: numbers.count, axis: numbers.compact, whole: true },
    ...Object.fromEntries(currencies.map((currency) => [`cost-${currency}`, {
      word: currencies.length > 1 ? `Cost ${currency}` : "Cost", title: `Cost ${a}, ${currency}`, of: (/** @type {Sum} */ sum) => sum.cost.get(currency) ?? 0,
      format: (/** @type {number} */ value) => numbers.money(value, currency), axis: (/** @type {number} */ value) => numbers.money(value, currency), whole: false,
    }])),
    turns,
  };
}

/** @param {Sum} all */
function cards(all) {
  const card = (/** @type {string} */ title, /** @type {string} */ value, /** @type {string} */ more, /** @type {string} */ testid) =>
    h("div", { class: "card", "data-testid": `card-${testid}` }, h("dt", {}, title), h("dd", {}, h("b", {}, value), h("span", {}, more)));
  const cost = [...all.cost].sort(([a], [b]) => a.localeCompare(b)).map(([currency, amount]) => numbers.money(amount, currency));
  const { completed, stopped, failed } = all.outcomes;
  const settled = completed + stopped + failed;
  return h("dl", { class: "card-row" },
    card("Tokens", numbers.count(all.total), `${numbers.count(all.prompt)} in, ${numbers.count(all.completion)} out`, "tokens"),
    card("Cost", cost[0] ?? "–", cost.length > 1 ? `and ${cost.slice(1).join(", ")}` : cost.length ? "by the prices in force" : "no price is set", "cost"),
    card("Turns", numbers.count(all.turns), [all.moderations > 0 && `${numbers.count(all.moderations)} moderations, `, `${numbers.share(all.estimated, settled)} with estimated tokens`].filter(Boolean).join(""), "turns"),
    card("Completed", numbers.share(completed, settled), `${numbers.count(stopped)} stopped, ${numbers.count(failed)} failed`, "completed"));
}

/** @param {Row} row @param {string} by */
const groupOf = (row, by) => (by === "persona" ? `${row.tenant} / ${row.persona || "–"}` : row.tenant);

/** @param {Row[]} rows @param {import("./range.js").Range} range @param {string} by @param {Measure} measure @param {AbortSignal} signal */
function drawn(rows, { columns }, by, measure, signal) {
  const inTime = (/** @type {Row[]} */ some, /** @type {(sum: Sum) => number} */ of) => {
    const found = new Map(grouped(some, (row) => row.at, () => 0).map(({ name, sum }) => [name, of(sum)]));
    return columns.map(({ key }) => found.get(key) ?? 0);
  };
  /** @type {import("./chart.js").Series[]} */
  let series;
  if (by === "outcome") {
    series = OUTCOMES.map((name) => ({ name, look: name, values: inTime(rows, (sum) => sum.outcomes[name]) }));
  } else {
    const groups = grouped(rows, (row) => groupOf(row, by), measure.of);
    const shown = groups.length > SERIES_MAX + 1 ? groups.slice(0, SERIES_MAX) : groups;
    const rest = groups.slice(shown.length);
    series = shown.map((group) => ({ name: group.name, values: inTime(group.rows, measure.of) }));
    if (rest.length) series.push({ name: `${rest.length} others`, look: "rest", values: inTime(rest.flatMap((group) => group.rows), measure.of) });
  }
  return new Chart({ title: `${measure.title}, ${BY[by].toLowerCase()}`, columns, series, format: measure.format, axis: measure.axis, whole: measure.whole }, signal).node;
}

const TITLES = ["total_tokens", "turns", "completed", "stopped", "failed", "prompt_tokens", "completion_tokens"];

/** The figures of sums, for a spreadsheet. @param {Sum} sum @param {string[]} currencies */
const plain = (sum, currencies) => [
  sum.total, sum.turns, ...OUTCOMES.map((name) => sum.outcomes[name]), sum.prompt, sum.completion, ...currencies.map((currency) => sum.cost.get(currency) ?? ""),
];

/** @param {string[]} currencies */
const titles = (currencies) => [...TITLES, ...currencies.map((currency) => `cost_${currency}`)];

/** @param {string[]} currencies @returns {import("./table.js").Column[]} */
const columns = (currencies) => [
  "Tokens", ...currencies.map((currency) => (currencies.length > 1 ? `Cost, ${currency}` : "Cost")), "Turns", "Completed", "Stopped", "Failed", "Tokens in", "Tokens out",
].map((title) => ({ title, right: true }));

/** The figures of several sums as they are shown, those of a column alike. @param {Sum[]} sums @param {string[]} currencies */
function figures(sums, currencies) {
  const monies = currencies.map((currency) => numbers.monies(sums.map((sum) => sum.cost.get(currency) ?? 0), currency));
  return sums.map((sum) => {
    const cost = currencies.map((currency, i) => (sum.cost.has(currency) ? monies[i](sum.cost.get(currency) ?? 0) : "–"));
    return [numbers.count(sum.total), ...cost, ...[sum.turns, ...OUTCOMES.map((name) => sum.outcomes[name]), sum.prompt, sum.completion].map(numbers.count)];
  });
}

/** @param {Row[]} rows @param {string} by @param {string[]} currencies @param {(tenant: string) => string} link */
function groups(rows, by, currencies, link) {
  const found = grouped(rows, (row) => JSON.stringify(by === "persona" ? [row.tenant, row.persona] : [row.tenant]), (sum) => sum.total);
  const heads = by === "persona" ? ["Tenant", "Persona"] : ["Tenant"];
  const names = found.map(({ name }) => /** @type {string[]} */ (JSON.parse(name)));
  const [foot, ...lines] = figures([sumOf(rows), ...found.map(({ sum }) => sum)], currencies);
  return panel(by === "persona" ? "Personas" : "Tenants", "usage-groups",
    copyButton([...heads.map((head) => head.toLowerCase()), ...titles(currencies)], () => found.map(({ sum }, i) => [...names[i], ...plain(sum, currencies)])),
    table(`Usage by ${by}`, [...heads.map((title, i) => ({ title, head: i === heads.length - 1, wide: true })), ...columns(currencies)],
      lines.map((line, i) => [h("a", { href: link(names[i][0]) }, names[i][0]), ...names[i].slice(1).map((name) => name || "–"), ...line]),
      { foot: ["All", ...heads.slice(1).map(() => ""), ...foot] }));
}

/** @param {Row[]} rows @param {import("./range.js").Range} range @param {string[]} currencies */
function steps(rows, { step, columns: all }, currencies) {
  const found = new Map(grouped(rows, (row) => row.at, () => 0).map(({ name, sum }) => [name, sum]));
  const settled = all.filter(({ key }) => found.has(key)).reverse().map((column) => ({ ...column, sum: found.get(column.key) ?? sumOf([]) }));
  const lines = figures(settled.map(({ sum }) => sum), currencies);
  return panel(step === "hour" ? "Hours" : "Days", "usage-steps",
    copyButton([step, ...titles(currencies)], () => settled.map(({ key, sum }) => [key, ...plain(sum, currencies)])),
    table(`Usage by ${step}`, [{ title: step === "hour" ? "Hour" : "Day", head: true, wide: true }, ...columns(currencies)],
      settled.map(({ key, label, long }, i) => [h("time", { datetime: key, title: long }, step === "hour" ? numbers.hour(key) : label), ...lines[i]])));
}

/** @param {string} title @param {string} testid @param {Node} tool @param {Node} content */
function panel(title, testid, tool, content) {
  return h("section", { class: "panel", "data-testid": testid }, h("div", { class: "panel-head" }, h("h2", {}, title), tool), content);
}
