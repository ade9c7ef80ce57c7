/** The chat over one WebSocket: commands up, events of every followed conversation down. It comes back by itself. */
import { Backoff } from "./backoff.js";
import { Commands } from "./commands.js";
import { Problem } from "./problems.js";

/**
 * @typedef {{id?: string, event: string, turn_id?: string, conversation_id?: string, request_id?: string | null, data?: any}} Frame
 * @typedef {"connecting" | "live" | "lost" | "closed"} LinkState
 * @typedef {{onFrame: (frame: Frame) => void, onState: (state: LinkState, problem?: Problem) => void,
 *            onGone: (turnId: string, problem?: Problem) => void, onUseless: () => void,
 *            onBroken: (turnId: string, conversationId: string) => void}} Listener
 * @typedef {{conversationId: string, message: string, clientMessageId: string}} Command
 */

const PROTOCOL = "hyperleap.chat.v1";
const OPENING_MS = 8_000;
const PING_MS = 20_000;

/** Close codes that end it for good; every other close is followed by a new connection. @type {Record<number, string>} */
const TERMINAL = { 4400: "not_understood", 4503: "access_ended", 4504: "forbidden" };
const TOKEN_EXPIRED = 4401;
const REFUSED = 4503; // also what a token gets that an older gateway signed: one new token is worth a try
const TOO_MANY = 4429;
const TOO_LARGE = 1009; // what was sent is too large, and would be on every other connection

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
  #commands = new Commands((frame) => this.#put(frame));
  /** Turns whose delivery broke on this connection. @type {Map<string, {backoff: Backoff, waiting: boolean}>} */
  #broken = new Map();

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
      if (this.#reason?.code === "door_closed") return this.#listener.onUseless(); // the gateway may still let in by HTTP
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
    const data = await this.#commands.ask({
      type: "turn.start", conversation_id: conversationId, message, client_message_id: clientMessageId,
    }, true);
    return data.turn_id;
  }

  /** @param {string} turnId */
  async stop(turnId) {
    await this.#commands.ask({ type: "turn.stop", turn_id: turnId }, true);
  }

  /** Asks for a conversation's active and future turns. @param {string} conversationId */
  follow(conversationId) {
    this.#commands.ask({ type: "subscribe", conversation_id: conversationId }, false).catch(() => {});
  }

  /** @param {string} conversationId */
  leave(conversationId) {
    this.#commands.ask({ type: "unsubscribe", conversation_id: conversationId }, false).catch(() => {});
  }

  /**
   * Asks for a turn's events after a cursor, or all of them.
   * @param {string} turnId @param {string} conversationId @param {string} [after]
   */
  read(turnId, conversationId, after) {
    this.#commands.ask({ type: "subscribe", turn_id: turnId, ...(after ? { after } : {}) }, false).then(
      (data) => data.ended && this.#listener.onGone(turnId),
      (problem) => {
        if (this.#broken.has(turnId) && problem.retryable) void this.#mend(turnId, conversationId, problem);
        else if (problem.code !== "network") this.#listener.onGone(turnId, problem);
      });
  }

  /** @param {string} token the renewed one */
  refresh(token) {
    this.#put({ type: "refresh", token });
  }

  /** The network is back or the page is looked at again: prove that the socket lives, or connect now. */
  wake() {
    if (!this.#isOpen()) return this.#backoff.hurry();
    for (const { backoff } of this.#broken.values()) backoff.hurry();
    this.#ping(4_000);
  }

  /** @param {Problem} [problem] what commands still waiting are told */
  close(problem = new Problem({ code: "network" })) {
    this.#done = true;
    this.#backoff.hurry();
    this.#socket?.close(1000);
    this.#broken.clear();
    this.#commands.close(problem);
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
        this.#broken.clear();
        if (code === TOO_LARGE) this.#commands.refuse("turn.start", new Problem({ code: "frame_too_large" }));
        this.#commands.drop();
        resolve({ opened, code });
      };
      this.#abandon = (code = 0) => finish(code);
      socket.onopen = () => {
        clearTimeout(opening);
        opened = this.#everOpen = true;
        this.#unanswered = false;
        this.#reason = undefined;
        this.#commands.resend();
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

  /** Ends the present connection as lost, without waiting for a peer that is perhaps not there. @param {number} [_code] */
  #abandon = (_code) => {};

  /** @param {Frame} frame */
  #take(frame) {
    if (this.#commands.take(frame)) return;
    const { event, turn_id: turnId, conversation_id: conversationId = "" } = frame;
    if (turnId && event === "error") void this.#mend(turnId, conversationId, new Problem(frame.data ?? {}));
    else if (turnId) {
      this.#broken.get(turnId)?.backoff.reset();
      this.#listener.onFrame(frame);
    } else if (event === "error") {
      // the gateway is about to close; if it does not, something of this connection broke, and a new one mends that
      this.#reason = new Problem(frame.data ?? {});
      if (this.#reason.code === "frame_too_large") return this.#abandon(TOO_LARGE);
      const socket = this.#socket;
      setTimeout(() => this.#socket === socket && this.#isOpen() && this.#abandon(), 1_000);
    }
  }

  /**
   * The delivery of one turn broke: has it read again, and nothing else. A new connection reads everything anyway.
   * @param {string} turnId @param {string} conversationId @param {Problem} problem
   */
  async #mend(turnId, conversationId, problem) {
    const broken = this.#broken.get(turnId) ?? { backoff: new Backoff(), waiting: false };
    if (broken.waiting) return;
    this.#broken.set(turnId, broken);
    broken.waiting = true;
    await broken.backoff.wait(problem.retryAfter_s * 1000);
    broken.waiting = false;
    if (this.#broken.get(turnId) === broken) this.#listener.onBroken(turnId, conversationId);
  }

  /** @param {object} frame @returns {boolean} whether there was a connection for it */
  #put(frame) {
    if (!this.#isOpen()) return false;
    this.#socket?.send(JSON.stringify(frame));
    return true;
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
