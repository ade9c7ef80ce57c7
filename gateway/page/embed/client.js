/**
 * The gateway's own client for browsers and Node.js 20 or later: sessions, conversations, and answers that stream over a
 * WebSocket or server-sent events and survive lost connections. Its types are in client.d.ts. It is one file, longer than
 * others are here, because it is what a page loads or a project copies: no dependencies, no build.
 *
 *   import { Client } from "https://chat.example.com/client.js";
 *   const chat = await new Client({ key: "hgp_…" }).create({ persona: "default" });
 *   for await (const event of await chat.send("Hello!")) if (event.type === "message.delta") show(event.data.text);
 */

const PROTOCOL = "hyperleap.chat.v1";
const ENDING = /^turn\.(completed|stopped|failed)$/;
const FIRST_MS = 300; // of the waits between attempts, which double …
const MOST_MS = 15_000; // … up to this
const TRIES = 6; // of a call that is safe to repeat
const OPENING_MS = 8_000; // for a socket
const SILENCE_MS = 45_000; // three keep-alive comments of a stream missed
const OWED_MS = 15_000; // a socket that owes an answer for so long is dead
const PING_MS = 20_000;
const ANSWER_MS = 30_000; // after which a caller learns that nobody answers

const NO_ANSWER = { code: "no_answer", detail: "The gateway did not answer in time; sending again is safe." };
const HISTORY_LOST = { code: "history_lost", status: 410, detail: "The answer has ended, and its events are gone." };
const MOVED = Symbol("the socket was given up for server-sent events");

/** A wait with full jitter: many clients that were cut off together do not come back together. @param {number} failures */
const backoff = (failures) => Math.min(MOST_MS, FIRST_MS * 2 ** failures) * (0.3 + 0.7 * Math.random());

/** A random id; `crypto.randomUUID` is not there on pages without TLS. */
const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Codes that trying again does not help, though their status sounds like it. */
const FINAL = new Set(["internal", "subscriptions_exceeded", "tenant_fixed", "upstream_rejected", "upstream_unauthorized", "answer_too_long"]);
const UNHEARD = new Set(["network", "no_answer"]);
const isPassing = (/** @type {number} */ status) => status === 409 || status === 429 || status >= 500;

export class GatewayError extends Error {
  /** @param {any} problem the members of an RFC 9457 document, or of the error of a turn that failed */
  constructor(problem) {
    super(problem.detail || problem.title || problem.code);
    this.name = "GatewayError";
    this.code = problem.code ?? "unknown";
    this.status = problem.status ?? 0;
    this.retryAfter = problem.retry_after_s;
    this.field = problem.field;
    this.requestId = problem.request_id;
    this.retryable = problem.retryable ?? (this.status ? isPassing(this.status) && !FINAL.has(this.code) : UNHEARD.has(this.code));
  }

  /** @param {unknown} error whatever was thrown */
  static from(error) {
    if (error instanceof GatewayError) return error;
    const unreached = new GatewayError({ code: "network", detail: `The gateway cannot be reached: ${/** @type {any} */ (error)?.message ?? error}` });
    unreached.cause = error;
    return unreached;
  }
}

/** @param {Response} response a refusal, whose body is read */
async function refusal(response) {
  const problem = await response.json().catch(() => ({ code: "unknown", title: `The gateway answered ${response.status}` }));
  const wait_s = Number.parseFloat(response.headers.get("retry-after") ?? "");
  return new GatewayError({ retry_after_s: Number.isFinite(wait_s) ? wait_s : undefined, ...problem, status: response.status });
}

/**
 * Reads server-sent events (WHATWG HTML 9.2.6), which `EventSource` could not be given a token for.
 * @param {ReadableStream<Uint8Array>} body @param {() => void} alive called for each piece that comes
 */
async function* readEvents(body, alive) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "", id = "", type = "", data = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      alive();
      const lines = (rest + decoder.decode(value, { stream: true })).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop() ?? "";
      for (const line of lines) {
        const [, name, told] = /^(.*?)(?:: ?(.*))?$/s.exec(line) ?? [];
        if (line === "") {
          if (data) yield { id, type, data: data.slice(1) };
          type = data = "";
        } else if (name === "id") id = told ?? "";
        else if (name === "event") type = told ?? "";
        else if (name === "data") data += `\n${told ?? ""}`;
        else if (name === "retry") yield { id, type: "retry", data: told ?? "" };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Who asks: a publishable key or a token's source, and the short-lived token that every call carries. */
class Session {
  #options;
  #post;
  /** @type {{token: string, renew_at: number} | undefined} */
  #held;
  /** @type {Promise<string> | undefined} one renewal at a time */
  #minting;
  #place;

  /** @param {any} options @param {(key: string, body: object) => Promise<any>} post opens a session */
  constructor(options, post) {
    this.#options = options;
    this.#post = post;
    this.#place = `hyperleap.visitor.${/^hgp_([a-z0-9-]+)/.exec(options.key ?? "")?.[1]}`;
    this.visitorId = options.visitorId ?? options.storage?.getItem(this.#place) ?? undefined;
  }

  /** Whether another token can be had. */
  get renewable() {
    return typeof this.#options.token !== "string";
  }

  /** Milliseconds until the token is to be renewed; at most what a timer takes. */
  get renew_ms() {
    const left_ms = (this.#held?.renew_at ?? Infinity) - Date.now() + 20; // a timer may be early
    return Math.max(1_000, Math.min(left_ms, 2 ** 31 - 1));
  }

  /** Drops a token that the gateway refused. @returns {boolean} whether another is worth a try */
  drop() {
    this.#held = undefined;
    return this.renewable;
  }

  /** @returns {Promise<string>} */
  async token() {
    if (this.#held && Date.now() < this.#held.renew_at) return this.#held.token;
    return (this.#minting ??= this.#mint().finally(() => (this.#minting = undefined)));
  }

  async #mint() {
    const { key, token: source } = this.#options;
    let held = key ? await this.#open(key) : typeof source === "string" ? source : await source();
    if (typeof held === "string") held = { token: held };
    this.#held = { token: held.token, renew_at: this.renewable ? renewalOf(held) : Infinity };
    return held.token;
  }

  /** @param {string} key */
  async #open(key) {
    let session;
    try {
      session = await this.#post(key, this.visitorId ? { visitor_id: this.visitorId } : {});
    } catch (error) {
      if (/** @type {GatewayError} */ (error).field !== "visitor_id") throw error;
      session = await this.#post(key, {}); // signed by another gateway, or too old: begin as a new visitor
    }
    this.visitorId = session.visitor_id ?? this.visitorId;
    try {
      if (session.visitor_id) this.#options.storage?.setItem(this.#place, session.visitor_id);
    } catch {} // no room: the visitor is known as long as this client lives
    return session;
  }
}

/**
 * When to renew a token: a minute, or a fifth of a short life, before its end. A clock that is wrong does no harm: the
 * life is measured by the gateway's own (`exp` − `iat`) where ours says that it is over or longer than that.
 * @param {{token: string, expires_at?: string}} held
 */
function renewalOf({ token, expires_at }) {
  let claims = {};
  try {
    claims = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
  } catch {} // not a JWT
  const { exp = Date.parse(expires_at ?? "") / 1000, iat = Date.now() / 1000 } = /** @type {any} */ (claims);
  if (!exp) return Infinity;
  const left_s = exp - Date.now() / 1000;
  const life_s = left_s > 0 ? Math.min(left_s, exp - iat) : exp - iat;
  return Date.now() + 1000 * (life_s - Math.min(60, life_s / 5));
}

/** A delivery that broke goes on, also where the gateway does not know why it broke. @param {GatewayError} error */
const isMendable = (error) => error.retryable || error.status >= 500;

/** One answer as it is read: what has come, how far, and who waits for more. */
class Reading {
  /** @type {any[]} */
  events = [];
  /** @type {unknown} why no more comes, where it is not the ending */
  failure;
  state = "waiting";
  text = "";
  /** @type {string | undefined} */
  messageId;
  left = false;
  failures = 0;
  abort = new AbortController();
  position;
  /** @type {(() => void)[]} */
  #waiting = [];

  /** @param {string} id @param {string} conversationId @param {string} cursor where to begin; "" for the beginning */
  constructor(id, conversationId, cursor = "") {
    this.id = id;
    this.conversationId = conversationId;
    this.cursor = cursor;
    this.position = Number(cursor.split(".")[1] ?? 0);
  }

  get over() {
    return this.left || this.failure !== undefined || ["completed", "stopped", "failed"].includes(this.state);
  }

  /**
   * Takes an event. What lies at or before the cursor was seen already (a replay may repeat or merge deltas).
   * @param {string} id @param {string} type @param {any} data
   */
  take(id, type, data) {
    const position = Number(id.slice(id.lastIndexOf(".") + 1));
    const advance = position - this.position;
    if (advance <= 0 || this.over) return;
    this.position = position;
    this.cursor = id;
    this.failures = 0;
    if (type === "message.delta") {
      // the position counts code points, of which a text has at most its length
      if (data.text.length > advance) data = { ...data, text: [...data.text].slice(-advance).join("") };
      this.text += data.text;
      this.state = "streaming";
    } else if (type === "turn.queued") this.state = "queued";
    else if (ENDING.test(type)) {
      this.state = type.slice(5);
      this.text = data.text ?? this.text;
    }
    this.messageId = data.message_id ?? this.messageId;
    this.events.push({ id, type, data });
    this.#tell();
  }

  /** @param {unknown} error */
  fail(error) {
    if (this.over) return;
    this.failure = error;
    this.#tell();
  }

  leave() {
    this.left = true;
    this.abort.abort();
    this.#tell();
  }

  more() {
    return new Promise((resolve) => this.#waiting.push(() => resolve(undefined)));
  }

  #tell() {
    for (const wake of this.#waiting.splice(0)) wake();
  }
}

/** The chat over one WebSocket. It is opened when it is needed, and comes back by itself for as long as it is. */
class Socket {
  #line;
  /** @type {WebSocket | undefined} */
  #ws;
  #running = false;
  #everOpen = false;
  #requests = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #owed;
  /** Why the gateway is about to close, told in a frame before it does. @type {GatewayError | undefined} */
  #reason;
  /** @type {Map<string, {frame: any, keep: boolean, sent?: boolean, done: (data: any) => void, fail: (error: unknown) => void}>} */
  #asked = new Map();
  /** By turn: the gateway sends one delivery of each, and every reading takes of it what it has not seen. @type {Map<string, Set<Reading>>} */
  #readings = new Map();

  /** @param {Line} line */
  constructor(line) {
    this.#line = line;
  }

  /**
   * @param {any} frame safe to repeat: it is sent again on the next connection, until it is answered
   * @param {(data: any) => any} done called at once with the answer, before any event that comes after it
   */
  ask(frame, done) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.#answer(id, "error", NO_ANSWER), ANSWER_MS);
      const id = this.#put(frame, true, (data) => {
        clearTimeout(timer);
        resolve(done(data));
      }, (error) => {
        clearTimeout(timer);
        reject(error);
      });
      void this.#run();
    });
  }

  /** @param {Reading} reading @param {boolean} [flowing] the gateway sends its events already */
  read(reading, flowing) {
    const readings = this.#readings.get(reading.id);
    if (readings) readings.add(reading);
    else this.#readings.set(reading.id, new Set([reading]));
    if (!flowing || readings) this.#subscribe(reading.id);
    void this.#run();
  }

  /** @param {Reading} reading */
  leave(reading) {
    const readings = this.#readings.get(reading.id);
    if (readings?.delete(reading) && !readings.size && this.#readings.delete(reading.id)) this.#put({ type: "unsubscribe", turn_id: reading.id });
  }

  /** @param {unknown} error what those are told who wait for something @returns {Reading[]} what was being read */
  close(error) {
    const readings = [...this.#readings.values()].flatMap((each) => [...each]);
    this.#readings.clear();
    for (const id of [...this.#asked.keys()]) this.#answer(id, "error", error);
    this.#abandon(0);
    return readings;
  }

  get #isOpen() {
    return this.#ws?.readyState === 1;
  }

  get #needed() {
    return !this.#line.closed && this.#line.transport === "ws" && this.#asked.size + this.#readings.size > 0;
  }

  async #run() {
    this.#line.hurry();
    if (this.#running) return;
    this.#running = true;
    const { session } = this.#line;
    let refused = false;
    for (let failures = 0; this.#needed; failures++) {
      let end = { opened: false, heard: false, code: 0 };
      this.#reason = undefined;
      try {
        const token = await session.token();
        end = await this.#once(token).catch(() => end); // some browsers throw where the page's policy forbids a socket
        if (!end.opened && this.#needed && failures >= (this.#everOpen ? 3 : 0)) {
          await this.#line.request("GET", "v1/conversations?limit=1", { tries: 1 });
          this.#line.fallBack(MOVED); // HTTP works and the socket does not: something on the way forbids it
        }
      } catch (error) {
        const problem = GatewayError.from(error);
        if (!problem.retryable) this.#end(problem);
      }
      if (end.heard) failures = 0;
      const reason = this.#reason ?? new GatewayError({ code: "network", detail: `The gateway closed the socket (${end.code}).` });
      if (reason.code === "door_closed") this.#line.fallBack(MOVED); // the gateway may still let in by HTTP
      else if (end.code === 4401 || end.code === 4503) {
        if (!session.drop() || (refused && end.code === 4503)) this.#end(reason);
      } else if (end.code === 4400 || end.code === 4504) this.#end(reason);
      refused = end.code === 4503;
      if (this.#needed) await this.#line.pause(Math.max(backoff(failures), end.code === 4429 ? 3_000 : 0));
    }
    this.#running = false;
  }

  /** Gives up for good: nothing that is waited for will come. @param {GatewayError} error */
  #end(error) {
    for (const reading of this.close(error)) reading.fail(error);
  }

  /** One connection, from opening to its end. @param {string} token @returns {Promise<{opened: boolean, heard: boolean, code: number}>} */
  #once(token) {
    return new Promise((resolve) => {
      const url = this.#line.at("v1/ws");
      url.protocol = url.protocol.replace("http", "ws");
      const ws = new this.#line.WebSocket(url.href, [PROTOCOL, `hgt.${token}`]);
      this.#ws = ws;
      let opened = false, heard = false;
      /** @type {any} */
      let renewing;
      const renew = () => {
        if (!this.#line.session.renewable) return;
        renewing = setTimeout(async () => {
          try {
            const fresh = await this.#line.session.token();
            if (this.#ws === ws) this.#put({ type: "refresh", token: fresh });
          } catch {} // the socket ends with its token, and the next one says what is wrong
          if (this.#ws === ws) renew();
        }, this.#line.session.renew_ms);
      };
      const opening = setTimeout(() => finish(0), OPENING_MS);
      const pinging = setInterval(() => this.#readings.size && this.#put({ type: "ping" }), PING_MS);
      const finish = (/** @type {number} */ code) => {
        if (this.#ws !== ws) return;
        ws.onopen = ws.onmessage = ws.onclose = null;
        this.#ws = undefined;
        clearTimeout(opening);
        clearTimeout(renewing);
        clearInterval(pinging);
        clearTimeout(this.#owed);
        this.#owed = undefined;
        ws.close();
        for (const [id, asked] of [...this.#asked]) {
          const tooLarge = code === 1009 && asked.sent && asked.frame.type === "turn.start";
          if (tooLarge) this.#answer(id, "error", this.#reason ?? new GatewayError({ code: "frame_too_large", status: 413 }));
          else if (!asked.keep) this.#asked.delete(id);
        }
        resolve({ opened, heard, code });
      };
      this.#abandon = finish;
      ws.onerror = () => opened || finish(0); // else its close follows; where a policy forbids the socket, nothing does
      ws.onclose = ({ code }) => finish(code);
      ws.onopen = () => {
        clearTimeout(opening);
        opened = this.#everOpen = true;
        renew();
        for (const asked of this.#asked.values()) this.#send(asked);
        for (const turnId of this.#readings.keys()) this.#subscribe(turnId);
      };
      ws.onmessage = ({ data }) => {
        heard = true;
        clearTimeout(this.#owed);
        this.#owed = undefined;
        this.#take(JSON.parse(data));
      };
    });
  }

  /** Ends the present connection as lost, without waiting for a peer that is perhaps not there. @param {number} _code */
  #abandon = (_code) => {};

  /** @param {any} frame */
  #take({ id, event, request_id, turn_id, data = {} }) {
    const readings = this.#readings.get(turn_id);
    if (request_id && (event === "ack" || event === "error")) this.#answer(request_id, event, data);
    else if (turn_id && event === "error") void this.#mend(turn_id, new GatewayError(data));
    else if (readings && id) {
      for (const reading of readings) reading.take(id, event, data);
      if (ENDING.test(event)) this.#readings.delete(turn_id);
    } else if (event === "error") {
      // the gateway is about to close; if it does not, something of this connection broke, and a new one mends that
      this.#reason = new GatewayError(data);
      const abandon = this.#abandon;
      setTimeout(() => abandon(this.#reason?.code === "frame_too_large" ? 1009 : 0), 1_000);
    }
  }

  /** @param {string} id @param {"ack" | "error"} event @param {any} data */
  #answer(id, event, data) {
    const asked = this.#asked.get(id);
    if (!this.#asked.delete(id) || !asked) return;
    if (event === "ack") asked.done(data);
    else asked.fail(data === MOVED || data instanceof GatewayError ? data : new GatewayError(data));
  }

  /** @param {string} turn_id */
  #subscribe(turn_id) {
    const readings = this.#readings.get(turn_id);
    if (!this.#isOpen || !readings) return;
    const { cursor: after } = [...readings].reduce((least, reading) => (reading.position < least.position ? reading : least));
    this.#put({ type: "subscribe", turn_id, ...(after && { after }) }, false, ({ ended }) => {
      if (ended) this.#lose(turn_id, new GatewayError(HISTORY_LOST));
    }, (error) => this.#mend(turn_id, error));
  }

  /** The delivery of one turn broke: has it read again, and nothing else. @param {string} turnId @param {any} error */
  async #mend(turnId, error) {
    const [reading] = this.#readings.get(turnId) ?? [];
    if (!reading || error === MOVED) return;
    if (!isMendable(error)) return this.#lose(turnId, error);
    const ws = this.#ws;
    await this.#line.pause(Math.max(backoff(reading.failures++), (error.retryAfter ?? 0) * 1000));
    if (this.#ws === ws) this.#subscribe(turnId); // a new connection reads everything anyway
  }

  /** @param {string} turnId @param {GatewayError} error */
  #lose(turnId, error) {
    const readings = this.#readings.get(turnId) ?? [];
    this.#readings.delete(turnId);
    for (const reading of readings) reading.fail(error);
  }

  /** @param {any} frame @param {boolean} [keep] @param {(data: any) => void} [done] @param {(error: unknown) => void} [fail] */
  #put(frame, keep = false, done = () => {}, fail = () => {}) {
    const id = `r${++this.#requests}`;
    const asked = { frame: { ...frame, request_id: id }, keep, done, fail };
    if (keep || frame.type === "subscribe") this.#asked.set(id, asked);
    this.#send(asked);
    return id;
  }

  /** @param {{frame: any, sent?: boolean}} asked */
  #send(asked) {
    if (!this.#isOpen) return;
    this.#ws?.send(JSON.stringify(asked.frame));
    asked.sent = true;
    const abandon = this.#abandon;
    this.#owed ??= setTimeout(() => abandon(0), OWED_MS);
  }
}

/** The way to the gateway, over either transport. */
class Line {
  closed = false;
  #fetch;
  #base;
  /** @type {Set<() => void>} */
  #pauses = new Set();
  /** @type {Set<Reading>} read over HTTP */
  #streams = new Set();
  #hurry = () => this.hurry();

  /** @param {any} options */
  constructor(options) {
    const { key, token, url = new URL(".", import.meta.url).href } = options;
    if (!key === !token) throw new TypeError("Give either a publishable key or a token");
    if (`${key ?? token}`.startsWith("hgs_")) throw new TypeError("A secret key belongs on a server; give a publishable key or a token");
    if (!/^https?:/.test(url)) throw new TypeError("Give the gateway's url");
    this.#base = url.endsWith("/") ? url : `${url}/`;
    this.#fetch = options.fetch ?? globalThis.fetch.bind(globalThis);
    this.WebSocket = options.WebSocket ?? globalThis.WebSocket;
    this.transport = options.transport === "sse" || !this.WebSocket ? "sse" : "ws";
    this.session = new Session(options, async (bearer, body) => (await this.request("POST", "v1/sessions", { body, bearer, tries: 1 })).json());
    this.socket = new Socket(this);
    globalThis.addEventListener?.("online", this.#hurry);
  }

  /** @param {string} path */
  at(path) {
    return new URL(path, this.#base);
  }

  /** A wait that {@link hurry} ends. @param {number} wait_ms */
  pause(wait_ms) {
    return new Promise((resolve) => {
      const wake = () => {
        clearTimeout(timer);
        this.#pauses.delete(wake);
        resolve(undefined);
      };
      const timer = setTimeout(wake, wait_ms);
      this.#pauses.add(wake);
    });
  }

  /** The network is back, or somebody asks for something: attempts that wait are made now. */
  hurry() {
    for (const wake of [...this.#pauses]) wake();
  }

  /**
   * Makes a call that is safe to repeat, and repeats it while the gateway is not reached or sends on to another worker.
   * @param {string} method @param {string} path
   * @param {{body?: unknown, headers?: Record<string, string>, bearer?: string, abort?: AbortController, tries?: number}} [options]
   * @returns {Promise<Response>} an answer below 400, its body unread
   */
  async request(method, path, { body, headers, bearer, abort, tries = TRIES } = {}) {
    for (let failures = 0, renewed = false; ; ) {
      const own = abort ?? new AbortController();
      let late = false;
      const timer = setTimeout(() => own.abort((late = true)), ANSWER_MS);
      try {
        const authorization = `Bearer ${bearer ?? (await this.session.token())}`;
        const content = body === undefined ? {} : { "content-type": "application/json" };
        const response = await this.#fetch(this.at(path).href, {
          method, body: body === undefined ? undefined : JSON.stringify(body),
          headers: { authorization, ...content, ...headers }, signal: own.signal,
        });
        if (response.ok) return response;
        throw await refusal(response);
      } catch (error) {
        const problem = late ? new GatewayError(NO_ANSWER) : GatewayError.from(error);
        if (problem.status === 401 && !bearer && !renewed && this.session.drop()) renewed = true; // perhaps ended by its clock
        else if ((problem.code !== "network" && problem.code !== "draining") || ++failures >= tries || this.closed || abort?.signal.aborted) throw problem;
        else await this.pause(Math.max(backoff(failures - 1), (problem.retryAfter ?? 0) * 1000));
      } finally {
        clearTimeout(timer);
      }
    }
  }

  /** @param {string} method @param {string} path @param {any} [options] @returns {Promise<any>} */
  async json(method, path, options) {
    return (await this.request(method, path, options)).json();
  }

  /** @param {string} conversationId @param {string} message @param {string} clientMessageId @returns {Promise<Reading>} */
  async start(conversationId, message, clientMessageId) {
    return this.#overEither(() => this.socket.ask({
      type: "turn.start", conversation_id: conversationId, message, client_message_id: clientMessageId,
    }, ({ turn_id }) => {
      const reading = new Reading(turn_id, conversationId);
      this.socket.read(reading, true);
      return reading;
    }), async () => {
      const abort = new AbortController();
      const response = await this.request("POST", `v1/conversations/${conversationId}/turns`, {
        body: { message }, headers: { accept: "text/event-stream", "idempotency-key": clientMessageId }, abort,
      });
      const reading = new Reading(response.headers.get("x-turn-id") ?? "", conversationId);
      reading.abort = abort;
      void this.#stream(reading, response);
      return reading;
    });
  }

  /** @param {string} turnId */
  stop(turnId) {
    return this.#overEither(
      () => this.socket.ask({ type: "turn.stop", turn_id: turnId }, () => undefined),
      () => this.request("POST", `v1/turns/${turnId}/stop`).then(() => undefined));
  }

  /** @param {Reading} reading */
  read(reading) {
    if (this.transport === "ws") this.socket.read(reading);
    else void this.#stream(reading);
    return reading;
  }

  /** @param {Reading} reading */
  leave(reading) {
    reading.leave();
    this.socket.leave(reading);
  }

  /** @param {symbol} moved */
  fallBack(moved) {
    this.transport = "sse";
    for (const reading of this.socket.close(moved)) void this.#stream(reading);
  }

  close() {
    this.closed = true;
    globalThis.removeEventListener?.("online", this.#hurry);
    const error = new GatewayError({ code: "closed", detail: "The client was closed.", retryable: false });
    for (const reading of [...this.socket.close(error), ...this.#streams]) reading.leave();
    this.hurry();
  }

  /** @param {() => Promise<any>} bySocket @param {() => Promise<any>} byHttp */
  async #overEither(bySocket, byHttp) {
    if (this.closed) throw new GatewayError({ code: "closed", detail: "The client was closed.", retryable: false });
    if (this.transport === "ws") {
      try {
        return await bySocket();
      } catch (error) {
        if (error !== MOVED) throw error;
      }
    }
    return byHttp();
  }

  /** Reads a turn to its ending, over as many connections as that takes. @param {Reading} reading @param {Response} [response] */
  async #stream(reading, response) {
    this.#streams.add(reading);
    while (!reading.over) {
      let wait_ms = 0;
      try {
        response ??= await this.#reopen(reading);
        if (!response.body || response.status === 204) throw new GatewayError(HISTORY_LOST);
        wait_ms = await this.#pump(reading, response.body);
      } catch (error) {
        const problem = GatewayError.from(error);
        if (!isMendable(problem)) reading.fail(problem);
        wait_ms = Math.max(backoff(reading.failures++), (problem.retryAfter ?? 0) * 1000);
      }
      response = undefined;
      if (!reading.over) await this.pause(wait_ms);
    }
    this.#streams.delete(reading);
  }

  /** @param {Reading} reading */
  #reopen(reading) {
    reading.abort = new AbortController();
    const { id, cursor, abort } = reading;
    const headers = { accept: "text/event-stream", ...(cursor && { "last-event-id": cursor }) };
    return this.request("GET", `v1/turns/${id}/events`, { headers, abort, tries: 1 });
  }

  /** @param {Reading} reading @param {ReadableStream<Uint8Array>} body @returns {Promise<number>} when to come back, in ms */
  async #pump(reading, body) {
    let wait_ms = FIRST_MS;
    /** @type {any} */
    let silence;
    const alive = () => {
      clearTimeout(silence);
      silence = setTimeout(() => reading.abort.abort(), SILENCE_MS);
    };
    alive();
    try {
      for await (const { id, type, data } of readEvents(body, alive)) {
        if (type === "retry") wait_ms = Number(data);
        else if (type === "stream.error") throw new GatewayError(JSON.parse(data)); // of this connection alone
        else if (id) reading.take(id, type, JSON.parse(data));
        if (reading.over) break;
      }
      return wait_ms;
    } finally {
      clearTimeout(silence);
    }
  }
}

export class Turn {
  #line;
  #reading;

  /** @param {Line} line @param {Reading} reading */
  constructor(line, reading) {
    this.#line = line;
    this.#reading = reading;
    this.id = reading.id;
    this.conversationId = reading.conversationId;
  }

  get state() {
    return this.#reading.state;
  }

  get text() {
    return this.#reading.text;
  }

  get messageId() {
    return this.#reading.messageId;
  }

  get cursor() {
    return this.#reading.cursor;
  }

  async *[Symbol.asyncIterator]() {
    const reading = this.#reading;
    for (let next = 0; ; ) {
      if (next < reading.events.length) yield reading.events[next++];
      else if (reading.failure) throw reading.failure;
      else if (reading.over) return;
      else await reading.more();
    }
  }

  async done() {
    let data;
    for await (const event of this) if (ENDING.test(event.type)) data = event.data;
    const { state, text, messageId } = this;
    return {
      state, text, messageId, usage: data?.usage, finishReason: data?.finish_reason, reason: data?.reason,
      error: data?.error && new GatewayError(data.error),
    };
  }

  stop() {
    return this.#line.stop(this.id);
  }

  leave() {
    this.#line.leave(this.#reading);
  }

  /** @param {number} score @param {object} [more] */
  rate(score, more) {
    if (!this.messageId) throw new TypeError("The answer has no message yet");
    return new Conversation(this.#line, this.conversationId).rate(this.messageId, score, more);
  }
}

export class Conversation {
  #line;

  /** @param {Line} line @param {string} id */
  constructor(line, id) {
    this.#line = line;
    this.id = id;
  }

  read() {
    return this.#line.json("GET", `v1/conversations/${this.id}`);
  }

  /** @param {string} message @param {{clientMessageId?: string}} [options] */
  async send(message, { clientMessageId = newId() } = {}) {
    return new Turn(this.#line, await this.#line.start(this.id, message, clientMessageId));
  }

  async resume() {
    const { active_turn_id: id } = await this.read();
    return id ? this.turn(id) : null;
  }

  /** @param {string} id @param {string} [after] */
  turn(id, after) {
    return new Turn(this.#line, this.#line.read(new Reading(id, this.id, after)));
  }

  /** @param {string} messageId @param {number} score @param {object} [more] */
  rate(messageId, score, more) {
    return this.#line.json("PUT", `v1/conversations/${this.id}/messages/${messageId}/feedback`, { body: { score, ...more } });
  }
}

export class Client {
  #line;

  /** @param {any} options */
  constructor(options = {}) {
    this.#line = new Line(options);
  }

  get transport() {
    return this.#line.transport;
  }

  get visitorId() {
    return this.#line.session.visitorId;
  }

  /** @param {{persona?: string, replacements?: object, metadata?: object, idempotencyKey?: string}} [options] */
  async create({ idempotencyKey = newId(), ...body } = {}) {
    const { id } = await this.#line.json("POST", "v1/conversations", { body, headers: { "idempotency-key": idempotencyKey } });
    return new Conversation(this.#line, id);
  }

  /** @param {string} id */
  conversation(id) {
    return new Conversation(this.#line, id);
  }

  /** @param {{limit?: number, cursor?: string}} [options] */
  list(options = {}) {
    const query = new URLSearchParams(Object.entries(options).map(([name, value]) => [name, `${value}`]));
    return this.#line.json("GET", `v1/conversations?${query}`);
  }

  close() {
    this.#line.close();
  }
}
