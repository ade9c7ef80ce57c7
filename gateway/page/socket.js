/** The chat over one WebSocket: commands up, events of every followed conversation down. It comes back by itself. */
import { Backoff } from "./backoff.js";
import { Problem } from "./problems.js";

/**
 * @typedef {{id?: string, event: string, turn_id?: string, conversation_id?: string, request_id?: string, data?: any}} Frame
 * @typedef {"connecting" | "live" | "lost" | "closed"} LinkState
 * @typedef {{onFrame: (frame: Frame) => void, onState: (state: LinkState, problem?: Problem) => void,
 *            onGone: (turnId: string, problem?: Problem) => void, onUseless: () => void}} Listener
 * @typedef {{conversationId: string, message: string, clientMessageId: string}} Command
 * @typedef {{frame: Record<string, unknown>, keep: boolean, timer: number,
 *            resolve: (data: any) => void, reject: (problem: Problem) => void}} Asked
 */

const PROTOCOL = "hyperleap.chat.v1";
const OPENING_MS = 8_000;
const PING_MS = 20_000;
const ACK_MS = 20_000;

/** Close codes that end it for good; every other close is followed by a new connection. @type {Record<number, string>} */
const TERMINAL = { 4400: "not_understood", 4503: "access_ended", 4504: "forbidden" };
const TOKEN_EXPIRED = 4401;
const REFUSED = 4503; // also what a token gets that an older gateway signed: one new token is worth a try
const TOO_MANY = 4429;

export class SocketLink {
  name = "ws";
  #session;
  #api;
  #listener;
  #backoff = new Backoff();
  /** @type {WebSocket | null} */
  #socket = null;
  #everOpen = false;
  #done = false;
  #unanswered = false;
  #retriedToken = false;
  /** Why the gateway is about to close, said in a frame before it does. @type {Problem | undefined} */
  #reason;
  #requests = 0;
  /** @type {Map<string, Asked>} */
  #asked = new Map();

  /** @param {import("./session.js").Session} session @param {import("./api.js").Api} api @param {Listener} listener */
  constructor(session, api, listener) {
    this.#session = session;
    this.#api = api;
    this.#listener = listener;
  }

  /** Connects and stays connected until {@link close}; says through the listener how it goes. */
  async open() {
    while (!this.#done) {
      this.#listener.onState(this.#everOpen ? "lost" : "connecting");
      /** @type {{opened: boolean, code: number}} */
      let end;
      try {
        end = await this.#once(await this.#session.token());
      } catch (error) {
        const problem = Problem.from(error);
        if (problem.status !== 0 && !problem.retryable) return this.#end(problem);
        end = { opened: false, code: 0 };
      }
      if (this.#done) return;
      if (end.code === TOKEN_EXPIRED || end.code === REFUSED) this.#session.invalidate();
      if (end.code in TERMINAL && (end.code !== REFUSED || this.#retriedToken)) {
        return this.#end(this.#reason ?? new Problem({ code: TERMINAL[end.code] }));
      }
      this.#retriedToken = end.code === REFUSED;
      if (!end.opened && this.#backoff.attempts >= (this.#everOpen ? 3 : 0) && (await this.#gatewayAnswers())) {
        return this.#listener.onUseless(); // HTTP works and the socket does not: something on the way forbids it
      }
      if (this.#done) return;
      this.#listener.onState(this.#everOpen ? "lost" : "connecting", end.opened ? undefined : new Problem({ code: "network" }));
      await this.#backoff.wait(end.code === TOO_MANY ? 3_000 : 0);
    }
  }

  /** @param {Command} command @returns {Promise<string>} the turn's id, once the gateway has it @throws {Problem} */
  async start({ conversationId, message, clientMessageId }) {
    const data = await this.#ask({
      type: "turn.start", conversation_id: conversationId, message, client_message_id: clientMessageId,
    }, true);
    return data.turn_id;
  }

  /** @param {string} turnId */
  async stop(turnId) {
    await this.#ask({ type: "turn.stop", turn_id: turnId }, true);
  }

  /** Asks for a conversation's active and future turns. @param {string} conversationId */
  follow(conversationId) {
    this.#ask({ type: "subscribe", conversation_id: conversationId }, false).catch(() => {});
  }

  /** @param {string} conversationId */
  leave(conversationId) {
    this.#ask({ type: "unsubscribe", conversation_id: conversationId }, false).catch(() => {});
  }

  /**
   * Asks for a turn's events after a cursor, or all of them.
   * @param {string} turnId @param {string} _conversationId @param {string} [after]
   */
  read(turnId, _conversationId, after) {
    this.#ask({ type: "subscribe", turn_id: turnId, ...(after ? { after } : {}) }, false).then(
      (data) => data.ended && this.#listener.onGone(turnId),
      (problem) => problem.code !== "network" && this.#listener.onGone(turnId, problem));
  }

  /** @param {string} token the renewed one */
  refresh(token) {
    this.#put({ type: "refresh", token });
  }

  /** The network is back or the page is looked at again: prove that the socket lives, or connect now. */
  wake() {
    if (!this.#isOpen()) return this.#backoff.hurry();
    this.#ping(4_000);
  }

  /** @param {Problem} [problem] what commands still waiting are told */
  close(problem = new Problem({ code: "network" })) {
    this.#done = true;
    this.#backoff.hurry();
    this.#socket?.close(1000);
    for (const asked of this.#asked.values()) {
      clearTimeout(asked.timer);
      asked.reject(problem);
    }
    this.#asked.clear();
  }

  /** One connection, from opening to its end. @param {string} token @returns {Promise<{opened: boolean, code: number}>} */
  #once(token) {
    return new Promise((resolve) => {
      const socket = new WebSocket(new URL("/v1/ws", location.href.replace(/^http/, "ws")), [PROTOCOL, `hgt.${token}`]);
      this.#socket = socket;
      let opened = false;
      const opening = setTimeout(() => finish(0), OPENING_MS);
      const pinging = setInterval(() => this.#ping(PING_MS / 2), PING_MS);
      const finish = (/** @type {number} */ code) => {
        clearTimeout(opening);
        clearInterval(pinging);
        socket.onopen = socket.onmessage = socket.onclose = null;
        socket.close();
        if (this.#socket === socket) this.#socket = null;
        this.#drop();
        resolve({ opened, code });
      };
      this.#abandon = () => finish(0);
      socket.onopen = () => {
        clearTimeout(opening);
        opened = this.#everOpen = true;
        this.#unanswered = false;
        this.#reason = undefined;
        for (const asked of this.#asked.values()) this.#send(asked);
        this.#listener.onState("live");
      };
      socket.onmessage = ({ data }) => {
        this.#unanswered = false;
        this.#backoff.reset();
        this.#take(JSON.parse(data));
      };
      socket.onclose = ({ code }) => finish(code);
    });
  }

  /** Ends the present connection as lost, without waiting for a peer that is perhaps not there. */
  #abandon = () => {};

  /** @param {Frame} frame */
  #take(frame) {
    const asked = frame.request_id === undefined ? undefined : this.#asked.get(frame.request_id);
    if (asked && frame.request_id && (frame.event === "ack" || frame.event === "error")) {
      clearTimeout(asked.timer);
      this.#asked.delete(frame.request_id);
      if (frame.event === "ack") asked.resolve(frame.data ?? {});
      else asked.reject(new Problem(frame.data ?? {}));
    } else if (frame.turn_id) {
      this.#listener.onFrame(frame);
    } else if (frame.event === "error") {
      // the gateway is about to close; if it does not, one of its deliveries broke, and a new connection mends that
      this.#reason = new Problem(frame.data ?? {});
      const socket = this.#socket;
      setTimeout(() => this.#socket === socket && this.#isOpen() && this.#abandon(), 1_000);
    }
  }

  /** @param {Record<string, unknown>} frame @param {boolean} keep sent again on the next connection; must be safe to repeat */
  #ask(frame, keep) {
    return new Promise((resolve, reject) => {
      const request_id = `r${++this.#requests}`;
      const asked = { frame: { ...frame, request_id }, keep, timer: 0, resolve, reject };
      this.#asked.set(request_id, asked);
      if (this.#isOpen()) this.#send(asked);
      else if (!keep) {
        this.#asked.delete(request_id);
        reject(new Problem({ code: "network" }));
      }
    });
  }

  /** @param {Asked} asked */
  #send(asked) {
    clearTimeout(asked.timer);
    asked.timer = setTimeout(() => {
      this.#asked.delete(/** @type {string} */ (asked.frame.request_id));
      asked.reject(new Problem({ code: "no_answer" }));
    }, ACK_MS);
    this.#put(asked.frame);
  }

  /** @param {object} frame */
  #put(frame) {
    if (this.#isOpen()) this.#socket?.send(JSON.stringify(frame));
  }

  /** Commands that may not be repeated end with their connection. */
  #drop() {
    for (const [id, asked] of this.#asked) {
      clearTimeout(asked.timer);
      if (asked.keep) continue;
      this.#asked.delete(id);
      asked.reject(new Problem({ code: "network" }));
    }
  }

  /** @param {number} limit_ms */
  #ping(limit_ms) {
    const socket = this.#socket;
    this.#unanswered = true;
    this.#put({ type: "ping" });
    setTimeout(() => {
      if (this.#unanswered && this.#socket === socket && this.#isOpen()) this.#abandon();
    }, limit_ms);
  }

  /** @param {Problem} problem */
  #end(problem) {
    this.close(problem);
    this.#listener.onState("closed", problem);
  }

  #isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  async #gatewayAnswers() {
    return this.#api.json("GET", "/v1/conversations").then(() => true, () => false);
  }
}
