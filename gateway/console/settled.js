/** Asks the admin API for what was settled, in the viewer's own days and hours. */
import { moment, ZONE } from "./numbers.js";
import { Problem } from "./problem.js";
import { keyOf } from "./range.js";

/** @typedef {import("./ledger.js").Row} Row */

const MICROS = 1_000_000;

/**
 * @param {import("./api.js").Api} api @param {import("./range.js").Range} range @param {string} tenant only this one's, if it is named
 * @param {AbortSignal} signal
 * @returns {Promise<{rows: Row[], note: string}>} `note`: what a reader must know of them
 */
export async function loadUsage(api, range, tenant, signal) {
  const query = { from: range.from, to: range.to, by: `${range.step},tenant,persona`, tenant: tenant || undefined, timezone: ZONE };
  /** @type {string[]} */
  const notes = [];
  for (;;) {
    try {
      const { data } = await api.call("GET", "/usage", { query, signal });
      const zone = `${range.step === "hour" ? "Hours" : "Days"} are those of ${query.timezone}.`;
      return { rows: data.map((/** @type {any} */ row) => read(row, range.step)), note: [zone, ...notes].join(" ") };
    } catch (error) {
      const problem = Problem.from(error);
      if (problem.field === "timezone" && query.timezone !== "UTC") query.timezone = "UTC"; // the gateway's list of zones is not the browser's
      else if (problem.field === "from" && problem.earliest && query.from !== problem.earliest) {
        query.from = problem.earliest;
        notes.push(`The ledger here goes back to ${moment(problem.earliest)} and no further.`);
      } else throw error;
    }
  }
}

/** @param {any} row @param {"hour" | "day"} step @returns {Row} */
function read(row, step) {
  return {
    at: keyOf(step, row[step]), tenant: row.tenant, persona: row.persona ?? "",
    turns: row.turns, moderations: row.moderations, prompt: row.prompt_tokens, completion: row.completion_tokens, total: row.total_tokens, estimated: row.estimated,
    cost: new Map(row.currency === null || row.cost_micros === null ? [] : [[row.currency, row.cost_micros / MICROS]]),
    outcomes: { completed: row.completed, stopped: row.stopped, failed: row.failed },
  };
}
