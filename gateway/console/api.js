/** Calls to the admin API and to the metrics. Every failure leaves as a {@link Problem}, or as an AbortError. */
import { Problem } from "./problem.js";

/** @typedef {{query?: Record<string, string | number | undefined>, body?: unknown, signal?: AbortSignal, token?: string}} Options */

export class Api {
  #session;
  /** The token that let in lets in no more. @param {Problem} problem */
  onrefused = (problem) => void problem;

  /** @param {import("./session.js").Session} session */
  constructor(session) {
    this.#session = session;
  }

  /**
   * @param {string} method @param {string} path below `/admin/v1`
   * @param {Options} [options] `token`: one that is tried, in the place of the tab's own
   * @returns {Promise<any>} what was answered; null for nothing
   */
  async call(method, path, { query = {}, body, signal, token } = {}) {
    const asked = new URLSearchParams();
    for (const [name, value] of Object.entries(query)) if (value !== undefined) asked.set(name, String(value));
    const address = `/admin/v1${path}${asked.size ? `?${asked}` : ""}`;
    const shown = token ?? this.#session.token;
    const response = await this.#fetch(address, {
      method,
      signal,
      headers: {
        authorization: `Bearer ${shown}`,
        ...(body === undefined ? {} : { "content-type": "application/json" }),
      },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    if (response.ok) return response.status === 204 ? null : response.json();
    const problem = await Problem.fromResponse(response);
    if (response.status === 401 && token === undefined) this.onrefused(problem);
    throw problem;
  }

  /**
   * Every page of a list, joined, until there are `most` entries.
   * @param {string} path @param {Options} options @param {number} most
   * @returns {Promise<{data: any[], more: boolean}>}
   */
  async pages(path, { query, signal }, most) {
    /** @type {any[]} */
    const data = [];
    let cursor;
    do {
      const page = await this.call("GET", path, { query: { ...query, cursor }, signal });
      data.push(...page.data);
      cursor = page.next_cursor ?? undefined;
    } while (cursor !== undefined && data.length < most);
    return { data: data.slice(0, most), more: cursor !== undefined || data.length > most };
  }

  /** The metrics of all workers of the gateway that answers, as text. @param {AbortSignal} [signal] @returns {Promise<string>} */
  async metrics(signal) {
    const response = await this.#fetch("/metrics", { signal, headers: { accept: "text/plain" } });
    if (!response.ok) throw await Problem.fromResponse(response);
    return response.text();
  }

  /** @param {string} address @param {RequestInit} options */
  async #fetch(address, options) {
    try {
      return await fetch(address, { cache: "no-store", credentials: "omit", redirect: "error", ...options });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw Problem.from(error);
    }
  }
}
