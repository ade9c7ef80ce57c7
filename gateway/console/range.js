/** Which time one looks at: the last hours or days, or from one day to another. Days and hours are those of the viewer's zone. */
import { button, h } from "./dom.js";
import * as numbers from "./numbers.js";

/**
 * @typedef {object} Range
 * @property {string} name @property {"hour" | "day"} step how it is told apart
 * @property {string} from @property {string} [to] as the API takes them; without `to` until now
 * @property {string} first @property {string} last the days of both ends, YYYY-MM-DD
 * @property {{key: string, label: string, long: string}[]} columns one a step; `key` as {@link keyOf} makes it
 */

const DAYS = /** @type {Record<string, number>} */ ({ "7d": 7, "30d": 30 });
const WORDS = /** @type {Record<string, string>} */ ({ "24h": "24 hours", "7d": "7 days", "30d": "30 days" });
const FIRST = "7d";
const HOURS = 24;
const HOUR_MS = 3_600_000;
const DAYS_MAX = 366;

/** @param {Date} at */
const dayOf = (at) => `${at.getFullYear()}-${String(at.getMonth() + 1).padStart(2, "0")}-${String(at.getDate()).padStart(2, "0")}`;

/** What a report calls an hour or a day, so that both are found by it. @param {"hour" | "day"} step @param {string} value */
export const keyOf = (step, value) => (step === "hour" ? new Date(value).toISOString() : value);

/** @param {string | null} text @returns {Date | null} when that day begins here */
function begin(text) {
  const parts = /^(\d{4})-(\d{2})-(\d{2})$/.exec(text ?? "");
  if (!parts) return null;
  const at = new Date(Number(parts[1]), Number(parts[2]) - 1, Number(parts[3]));
  return dayOf(at) === text ? at : null;
}

/** @param {Date} from @param {Date} until */
function hours(from, until) {
  const columns = [];
  for (let at = from.getTime(); at < until.getTime(); at += HOUR_MS) {
    columns.push({ key: new Date(at).toISOString(), label: numbers.clock(at), long: numbers.exactHour(at) });
  }
  return columns;
}

/** @param {Date} first @param {Date} last */
function days(first, last) {
  const columns = [];
  for (let at = first; at <= last; at = new Date(at.getFullYear(), at.getMonth(), at.getDate() + 1)) {
    columns.push({ key: dayOf(at), label: numbers.day(at), long: numbers.longDay(at) });
  }
  return columns;
}

/** The range that an address names, or the usual one. @param {URLSearchParams} choices @returns {Range} */
export function rangeOf(choices) {
  const now = new Date();
  const today = new Date(now.getFullYear(), now.getMonth(), now.getDate());
  const named = choices.get("range") ?? FIRST;
  if (named === "24h") {
    const until = new Date(Math.floor(now.getTime() / HOUR_MS + 1) * HOUR_MS);
    const from = new Date(until.getTime() - HOURS * HOUR_MS);
    return { name: "24h", step: "hour", from: from.toISOString(), first: dayOf(from), last: dayOf(now), columns: hours(from, until) };
  }
  let [first, last] = [begin(choices.get("from")), begin(choices.get("to"))];
  const custom = named === "custom" && first !== null && last !== null && first <= last && first <= now && lengthOf(first, last) <= DAYS_MAX;
  const name = custom ? "custom" : Object.hasOwn(DAYS, named) ? named : FIRST;
  if (!custom || first === null || last === null) {
    [first, last] = [new Date(today.getFullYear(), today.getMonth(), today.getDate() - DAYS[name] + 1), today];
  }
  const step = dayOf(first) === dayOf(last) ? "hour" : "day";
  const columns = step === "day" ? days(first, last) : hours(first, new Date(first.getFullYear(), first.getMonth(), first.getDate() + 1));
  return { name, step, from: dayOf(first), to: dayOf(last), first: dayOf(first), last: dayOf(last), columns };
}

/** @param {Date} first @param {Date} last how many days, both included */
const lengthOf = (first, last) => Math.round((last.getTime() - first.getTime()) / (24 * HOUR_MS)) + 1;

/**
 * Where one chooses a range.
 * @param {Range} current @param {(choices: Record<string, string>) => void} choose
 */
export function rangePicker(current, choose) {
  const today = dayOf(new Date());
  const from = h("input", { type: "date", id: "range-from", "data-testid": "range-from", required: true, max: today });
  const to = h("input", { type: "date", id: "range-to", "data-testid": "range-to", required: true });
  from.value = current.first;
  to.value = current.last;
  const problem = h("p", { class: "field-problem", role: "alert", hidden: true, "data-testid": "range-problem" });
  const form = h("form", {
    class: "range-form", hidden: current.name !== "custom", novalidate: true,
    onsubmit: (/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      const wrong = wrongWith(begin(from.value), begin(to.value));
      problem.textContent = wrong;
      problem.hidden = !wrong;
      if (!wrong) choose({ range: "custom", from: from.value, to: to.value });
    },
  },
    h("label", { for: "range-from" }, "From"), from, h("label", { for: "range-to" }, "to"), to,
    h("button", { type: "submit", class: "button small", "data-testid": "range-show" }, "Show"), problem);
  const custom = button("Custom", "small", () => {
    form.hidden = false;
    from.focus();
  }, { testid: "range-custom" });
  custom.setAttribute("aria-pressed", String(current.name === "custom"));
  const buttons = Object.entries(WORDS).map(([name, words]) => {
    const made = button(words, "small", () => choose({ range: name, from: "", to: "" }), { testid: `range-${name}` });
    made.setAttribute("aria-pressed", String(name === current.name));
    return made;
  });
  return h("div", { class: "range" }, h("div", { class: "choice", role: "group", "aria-label": "Time" }, ...buttons, custom), form);
}

/** @param {Date | null} first @param {Date | null} last */
function wrongWith(first, last) {
  if (!first || !last) return "Fill in both days.";
  if (first > last) return "The first day is after the last one.";
  if (first > new Date()) return "The first day lies in the future.";
  return lengthOf(first, last) > DAYS_MAX ? `At most ${DAYS_MAX} days can be shown.` : "";
}

/**
 * One of a few, as buttons beside each other.
 * @param {string} label @param {Record<string, string>} options value to words @param {string} current @param {(value: string) => void} choose
 */
export function choice(label, options, current, choose) {
  return h("div", { class: "choice", role: "group", "aria-label": label }, ...Object.entries(options).map(([value, words]) => {
    const made = button(words, "small", () => choose(value), { testid: `choice-${value}` });
    made.setAttribute("aria-pressed", String(value === current));
    return made;
  }));
}
