/** What was settled, by time, tenant and persona: the rows that every sum of the usage view is made of. */

/**
 * @typedef {object} Row
 * @property {string} at the hour or the day @property {string} tenant @property {string} persona nothing for what has none
 * @property {number} turns @property {number} moderations messages that were judged; their tokens and outcomes are in the rest
 * @property {number} prompt @property {number} completion @property {number} total
 * @property {number} estimated how many have tokens that are estimates
 * @property {Map<string, number>} cost by currency; none where no price was in force
 * @property {{completed: number, stopped: number, failed: number}} outcomes
 */

/** @returns {Omit<Row, "at" | "tenant" | "persona">} */
export const nothing = () => ({ turns: 0, moderations: 0, prompt: 0, completion: 0, total: 0, estimated: 0, cost: new Map(), outcomes: { completed: 0, stopped: 0, failed: 0 } });

/**
 * Adds rows up.
 * @param {Row[]} rows
 */
export function sumOf(rows) {
  const sum = nothing();
  for (const row of rows) {
    sum.turns += row.turns;
    sum.moderations += row.moderations;
    sum.prompt += row.prompt;
    sum.completion += row.completion;
    sum.total += row.total;
    sum.estimated += row.estimated;
    for (const [currency, amount] of row.cost) sum.cost.set(currency, (sum.cost.get(currency) ?? 0) + amount);
    for (const name of /** @type {const} */ (["completed", "stopped", "failed"])) sum.outcomes[name] += row.outcomes[name];
  }
  return sum;
}

/**
 * The rows in groups, the largest first.
 * @param {Row[]} rows @param {(row: Row) => string} name @param {(sum: ReturnType<typeof nothing>) => number} size
 */
export function grouped(rows, name, size) {
  /** @type {Map<string, Row[]>} */
  const groups = new Map();
  for (const row of rows) {
    const group = groups.get(name(row));
    if (group) group.push(row);
    else groups.set(name(row), [row]);
  }
  return [...groups].map(([own, some]) => ({ name: own, rows: some, sum: sumOf(some) })).sort((a, b) => size(b.sum) - size(a.sum) || a.name.localeCompare(b.name));
}
