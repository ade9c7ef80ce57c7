/** One answer and how far it has come. Pure: events in, fields changed; no page, no network. */

/**
 * @typedef {"waiting" | "queued" | "streaming" | "completed" | "stopped" | "failed"} TurnState
 * @typedef {{prompt_tokens?: number | null, completion_tokens?: number | null, total_tokens?: number | null, source?: string}} Usage
 * @typedef {{score: number, comments?: string | null, tags?: string[] | null}} Feedback
 * @typedef {{text?: string | null, relevance?: number | null, partitionNumber?: number | null}} Partition
 * @typedef {{link?: string | null, index?: string | number | null, sourceName?: string | null, sourceUrl?: string | null,
 *            sourceContentType?: string | null, documentId?: string | null, partitions?: Partition[] | null}} Citation
 * @typedef {{category?: string | null, filtered?: boolean, severity?: string | null}} Moderation
 */

export class Turn {
  kind = /** @type {const} */ ("answer");
  /** The turn's id; "" until the gateway names it, and for answers of the past. */
  id = "";
  messageId = "";
  /** @type {TurnState} */
  state = "waiting";
  text = "";
  /** Whether what was streamed is exactly what the ending says; unknown until then. @type {boolean | null} */
  intact = null;
  /** Where the next connection goes on. */
  cursor = "";
  #position = 0;
  /** @type {Usage | null} */
  usage = null;
  /** @type {Citation[]} */
  citations = [];
  /** @type {Moderation[]} */
  moderations = [];
  /** @type {{name?: string | null, role?: string | null, content?: string | null}[]} */
  extras = [];
  /** @type {Feedback | null} */
  feedback = null;
  finishReason = "";
  stopReason = "";
  /** @type {import("./problems.js").ProblemJson | null} */
  error = null;
  /** @type {{position?: number, wait_s?: number} | null} */
  queue = null;
  /** A stop was asked for and is not yet seen. */
  stopping = false;
  /** When the question was sent, by `performance.now()`; 0 when another page did that. */
  askedAt = 0;
  /** Time from the question to the first text, in seconds; 0 when not measured here. */
  firstText_s = 0;

  get ended() {
    return this.state === "completed" || this.state === "stopped" || this.state === "failed";
  }

  /**
   * Takes one event. What lies at or before the cursor was seen already (a replay may repeat or merge it) and changes nothing.
   * @param {string} id @param {string} event @param {any} data @param {number} [now] `performance.now()` at arrival
   * @returns {boolean} whether something changed
   */
  take(id, event, data, now = 0) {
    const position = Number(id.slice(id.lastIndexOf(".") + 1));
    if (position <= this.#position || this.ended) return false;
    const seen = this.#position;
    this.#position = position;
    this.cursor = id;
    switch (event) {
      case "turn.queued":
        this.state = "queued";
        this.queue = data;
        break;
      case "message.started":
        this.messageId = data.message_id ?? "";
        if (this.state === "queued") this.state = "waiting";
        break;
      case "message.delta":
        this.#append(data.text, position - seen);
        if (this.askedAt && !this.firstText_s && now) this.firstText_s = (now - this.askedAt) / 1000;
        break;
      case "message.citations":
        this.citations = [...this.citations, ...(data.citations ?? [])];
        break;
      case "message.moderated":
        this.moderations = [...this.moderations, ...(data.categories ?? [])];
        break;
      case "message.extra":
        this.extras = [...this.extras, data];
        break;
      case "turn.completed":
      case "turn.stopped":
      case "turn.failed":
        this.#end(event, data);
        break;
      default: // turn.started, and events of a newer gateway
    }
    return true;
  }

  /** Forgets what was read, to read it again from its beginning. */
  rewind() {
    this.#position = 0;
    this.cursor = this.text = "";
    this.citations = [];
    this.moderations = [];
    this.extras = [];
  }

  /**
   * Ends it without its ending: from the gateway's record, or as failed when the record has nothing of it.
   * @param {import("./record.js").MessageRecord | null} message @param {import("./problems.js").ProblemJson | null} problem
   */
  close(message, problem) {
    this.stopping = false;
    this.error = message?.error ?? problem ?? { code: "ended_before" };
    this.state = !message || message.state === "failed" ? "failed" : message.state === "stopped" ? "stopped" : "completed";
    if (!message) return;
    this.id = this.id || (message.turn_id ?? "");
    this.messageId = message.message_id ?? "";
    this.text = message.content ?? this.text;
    this.stopReason = message.reason ?? "";
    this.finishReason = message.finish_reason ?? "";
    this.usage = message.usage ?? null;
  }

  /** @param {string} text @param {number} advance positions since the last event: a longer text overlaps what was seen */
  #append(text, advance) {
    const points = text.length > advance ? [...text] : null; // only then can it have more code points than positions
    this.text += points && points.length > advance ? points.slice(points.length - advance).join("") : text;
    this.state = "streaming";
  }

  /** @param {string} event @param {any} data */
  #end(event, data) {
    this.state = /** @type {TurnState} */ (event.slice("turn.".length));
    this.stopping = false;
    if (typeof data.text === "string") {
      this.intact = this.text === data.text;
      this.text = data.text;
    }
    this.messageId = data.message_id ?? this.messageId;
    this.usage = data.usage ?? null;
    this.finishReason = data.finish_reason ?? "";
    this.stopReason = data.reason ?? "";
    this.error = data.error ?? null;
  }
}
