/** Calls to the gateway's native door. Every failure leaves as a {@link Problem}. */
import { Problem } from "./problems.js";

/** @typedef {import("./session.js").Session} Session */
/** @typedef {{body?: unknown, headers?: Record<string, string>, signal?: AbortSignal}} Options */

export class Api {
  #session;

  /** @param {Session} session */
  constructor(session) {
    this.#session = session;
  }

  /**
   * @param {string} method @param {string} path @param {Options} [options]
   * @returns {Promise<Response>} an answer below 400, its body unread
   * @throws {Problem} or an AbortError when the signal fired
   */
  async send(method, path, options = {}) {
    for (let attempt = 1; ; attempt++) {
      const token = await this.#session.token();
      const response = await this.#fetch(method, path, options, token);
      if (response.ok) return response;
      const problem = await Problem.fromResponse(response);
      if (response.status !== 401 || attempt === 2) throw problem;
      this.#session.invalidate(); // a token that was still good by our clock: mint once more, then believe it
    }
  }

  /** @param {string} method @param {string} path @param {Options} [options] @returns {Promise<any>} */
  async json(method, path, options) {
    const response = await this.send(method, path, options);
    return response.status === 204 ? null : response.json();
  }

  /** @param {string} method @param {string} path @param {Options} options @param {string} token */
  async #fetch(method, path, { body, headers, signal }, token) {
    try {
      return await fetch(path, {
        method,
        signal,
        headers: {
          authorization: `Bearer ${token}`,
          ...(body === undefined ? {} : { "content-type": "application/json" }),
          ...headers,
        },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw Problem.from(error);
    }
  }
}
