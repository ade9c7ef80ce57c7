/** The page's way to the gateway: a WebSocket, or server-sent events where a socket cannot be had. */
import { Problem } from "./problems.js";
import { SocketLink } from "./socket.js";
import { StreamLink } from "./stream.js";

/** @typedef {Omit<import("./socket.js").Listener, "onUseless">} Listener */

export class Link {
  #api;
  #listener;
  /** @type {SocketLink | StreamLink} */
  #current;

  /**
   * @param {import("./session.js").Session} session @param {import("./api.js").Api} api @param {Listener} listener
   * @param {boolean} plain server-sent events from the start
   */
  constructor(session, api, listener, plain) {
    this.#api = api;
    this.#listener = listener;
    this.#current = plain
      ? new StreamLink(api, this.#streamListener())
      : new SocketLink(session, api, { ...listener, onUseless: () => this.#fallBack() });
    session.onrenewed = (token) => this.#current.refresh(token);
  }

  /** "ws" or "sse" */
  get transport() {
    return this.#current.name;
  }

  open() {
    this.#current.open();
  }

  /** @param {import("./socket.js").Command} command @returns {Promise<string>} the turn's id @throws {Problem} */
  async start(command) {
    try {
      return await this.#current.start(command);
    } catch (error) {
      if (!(error instanceof Problem) || error.code !== "moved") throw error;
      return this.#current.start(command); // the same client message id: the gateway takes it once
    }
  }

  /** @param {string} turnId */
  async stop(turnId) {
    try {
      await this.#current.stop(turnId);
    } catch (error) {
      if (!(error instanceof Problem) || error.code !== "moved") throw error;
      await this.#current.stop(turnId);
    }
  }

  /** @param {string} conversationId */
  follow(conversationId) {
    this.#current.follow(conversationId);
  }

  /** @param {string} conversationId */
  leave(conversationId) {
    this.#current.leave(conversationId);
  }

  /** @param {string} turnId @param {string} conversationId @param {string} after a cursor, or "" for the whole turn */
  read(turnId, conversationId, after) {
    this.#current.read(turnId, conversationId, after);
  }

  wake() {
    this.#current.wake();
  }

  close() {
    this.#current.close();
  }

  #streamListener() {
    return { ...this.#listener, onUseless: () => {} };
  }

  #fallBack() {
    const socket = this.#current;
    this.#current = new StreamLink(this.#api, this.#streamListener());
    socket.close(new Problem({ code: "moved" }));
    this.#current.open();
  }
}
