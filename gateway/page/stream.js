/** The same as socket.js over plain HTTP: one server-sent stream for each turn that is being read. */
import { Backoff } from "./backoff.js";
import { Problem } from "./problems.js";
import { readEvents } from "./sse.js";

/**
 * @typedef {import("./socket.js").Listener} Listener
 * @typedef {import("./socket.js").Command} Command
 * @typedef {{turnId: string, conversationId: string, after: string, abort: AbortController, backoff: Backoff, command?: Command,
 *            accepted: (turnId: string) => void, refused: (problem: Problem) => void}} Reader
 */

const SILENCE_MS = 45_000; // three keep-alive comments missed
const ENDINGS = new Set(["turn.completed", "turn.stopped", "turn.failed"]);

export class StreamLink {
  name = "sse";
  #api;
  #listener;
  /** @type {Set<Reader>} */
  #readers = new Set();

  /** @param {import("./api.js").Api} api @param {Listener} listener */
  constructor(api, listener) {
    this.#api = api;
    this.#listener = listener;
  }

  /** There is no connection to keep: it is live until a call fails. */
  async open() {
    this.#listener.onState("live");
  }

  /** @param {Command} command @returns {Promise<string>} the turn's id, once its first event is here @throws {Problem} */
  start(command) {
    return new Promise((accepted, refused) => {
      this.#run({ ...this.#reader("", command.conversationId, ""), command, accepted, refused });
    });
  }

  /** @param {string} turnId */
  async stop(turnId) {
    await this.#api.json("POST", `/v1/turns/${turnId}/stop`);
  }

  /** Future turns are not announced over plain HTTP: other tabs and a fresh look at the conversation tell of them. */
  follow() {}

  leave() {}

  /** @param {string} turnId @param {string} conversationId @param {string} [after] */
  read(turnId, conversationId, after = "") {
    for (const reader of this.#readers) if (reader.turnId === turnId) return;
    this.#run(this.#reader(turnId, conversationId, after));
  }

  refresh() {}

  wake() {
    for (const reader of this.#readers) reader.backoff.hurry();
  }

  close() {
    for (const reader of this.#readers) reader.abort.abort();
  }

  /** @param {string} turnId @param {string} conversationId @param {string} after @returns {Reader} */
  #reader(turnId, conversationId, after) {
    return {
      turnId, conversationId, after, abort: new AbortController(), backoff: new Backoff(), accepted: () => {}, refused: () => {},
    };
  }

  /** Reads a turn to its ending, over as many connections as that takes. @param {Reader} reader */
  async #run(reader) {
    this.#readers.add(reader);
    try {
      while (!reader.abort.signal.aborted) {
        let least_ms = 0;
        try {
          const response = await this.#request(reader);
          this.#listener.onState("live");
          this.#name(reader, response.headers.get("x-turn-id") ?? "");
          if (response.status === 204) return this.#listener.onGone(reader.turnId);
          if (await this.#pump(reader, response)) return;
        } catch (error) {
          if (reader.abort.signal.aborted) return;
          const problem = Problem.from(error);
          if (!reader.turnId && (problem.status !== 0 || reader.backoff.attempts >= 3)) return reader.refused(problem);
          if (reader.turnId && !problem.retryable) return this.#listener.onGone(reader.turnId, problem);
          least_ms = problem.retryAfter_s * 1000;
        }
        this.#listener.onState("lost");
        await reader.backoff.wait(least_ms);
      }
    } finally {
      this.#readers.delete(reader);
    }
  }

  /** @param {Reader} reader */
  #request({ turnId, conversationId, after, abort: { signal }, command }) {
    const accept = "text/event-stream";
    if (turnId) {
      /** @type {Record<string, string>} */
      const headers = after ? { accept, "last-event-id": after } : { accept };
      return this.#api.send("GET", `/v1/turns/${turnId}/events`, { headers, signal });
    }
    const headers = { accept, "idempotency-key": command?.clientMessageId ?? "" };
    return this.#api.send("POST", `/v1/conversations/${conversationId}/turns`, {
      body: { message: command?.message }, headers, signal,
    });
  }

  /** @param {Reader} reader @param {string} turnId */
  #name(reader, turnId) {
    if (reader.turnId || !turnId) return;
    reader.turnId = turnId;
    reader.accepted(turnId);
  }

  /** @param {Reader} reader @param {Response} response @returns {Promise<boolean>} whether the turn ended */
  async #pump(reader, response) {
    for await (const { id, event, data } of readEvents(response, SILENCE_MS)) {
      const body = JSON.parse(data);
      if (event === "stream.error") throw new Problem(body); // of this connection, not of the turn
      reader.backoff.reset();
      this.#name(reader, id.slice(0, id.lastIndexOf(".")));
      reader.after = id;
      this.#listener.onFrame({ id, event, turn_id: reader.turnId, conversation_id: reader.conversationId, data: body });
      if (ENDINGS.has(event)) return true;
    }
    return false;
  }
}
