/**
 * What the metrics tell of latency, outcomes, limits and feedback: of the workers of the gateway that answers, together,
 * since each of them started. Other instances of a fleet have metrics of their own, which Prometheus puts together.
 */
import { readSamples, sumsBy } from "./exposition.js";
import { Histogram } from "./histogram.js";

/** @typedef {import("./exposition.js").Sample} Sample */

export const FIRST_TEXT = "gen_ai_client_operation_time_to_first_chunk_seconds";
export const BETWEEN = "gen_ai_client_operation_time_per_output_chunk_seconds";
export const DURATION = "gen_ai_client_operation_duration_seconds";
const ENDED = "gateway_turns_total";
const FEEDBACK = "gateway_feedback_total";
const POINTS = "gateway_feedback_points_total";
const DECIDED = "gateway_limit_decisions_total";
const STARTED = "process_start_time_seconds";
const HISTOGRAMS = [FIRST_TEXT, BETWEEN, DURATION];
const WANTED = new Set([ENDED, FEEDBACK, POINTS, DECIDED, STARTED]);

export class Figures {
  #samples;

  /** @param {string} text a scrape */
  constructor(text) {
    this.#samples = readSamples(text, (name) => WANTED.has(name) || HISTOGRAMS.some((one) => name.startsWith(one)));
  }

  /** @param {import("./api.js").Api} api @param {AbortSignal} signal */
  static async load(api, signal) {
    return new Figures(await api.metrics(signal));
  }

  /** When the workers started, in seconds since 1970, the earliest first. */
  get starts() {
    return this.#samples.filter(({ name }) => name === STARTED).map(({ value }) => value).sort((a, b) => a - b);
  }

  /** @param {string} name one of the three above @param {string[]} by */
  histograms(name, by) {
    return Histogram.read(this.#samples, name, by);
  }

  /** Turns ended: tenant, persona, outcome, reason. */
  get endings() {
    return sumsBy(this.#samples, ENDED, ["tenant", "persona", "outcome", "reason"]).filter(({ value }) => value > 0);
  }

  /** Requests that a limit refused: tenant, limit. */
  get refusals() {
    const refused = this.#samples.filter(({ labels }) => labels.decision === "refused");
    return sumsBy(refused, DECIDED, ["tenant", "limit"]).filter(({ value }) => value > 0);
  }

  /** Feedback: tenant, persona; how many of each sign, and the mean score. */
  get feedback() {
    /** @type {Map<string, {tenant: string, persona: string, positive: number, neutral: number, negative: number, points: number}>} */
    const found = new Map();
    for (const [name, weight] of /** @type {[string, number][]} */ ([[FEEDBACK, 0], [POINTS, 1]])) {
      for (const { labels: [tenant, persona, sign], value } of sumsBy(this.#samples, name, ["tenant", "persona", "sign"])) {
        const key = JSON.stringify([tenant, persona]);
        const one = found.get(key) ?? { tenant, persona, positive: 0, neutral: 0, negative: 0, points: 0 };
        found.set(key, one);
        if (weight) one.points += sign === "negative" ? -value : value;
        else one[/** @type {"positive" | "neutral" | "negative"} */ (sign)] += value;
      }
    }
    return [...found.values()]
      .map((one) => ({ ...one, count: one.positive + one.neutral + one.negative }))
      .filter(({ count }) => count > 0)
      .map((one) => ({ ...one, mean: one.points / one.count }));
  }
}
