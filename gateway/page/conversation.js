/** A conversation as this page knows it: the gateway's record, plus what is being asked and answered right now. */
import { absorb, entryOf, isSame } from "./record.js";
import { Turn } from "./turn.js";

/**
 * @typedef {import("./socket.js").Frame} Frame
 * @typedef {import("./record.js").ConversationRecord} ConversationRecord
 * @typedef {{kind: "question", text: string, messageId: string, turnId: string, clientMessageId: string,
 *            state: "sending" | "sent" | "failed", problem: import("./problems.js").Problem | null}} Question
 * @typedef {Question | Turn} Entry
 */

export class Conversation {
  /** "" until its first message creates it. */
  id = "";
  name = "";
  /** @type {Entry[]} in the order in which they are shown */
  entries = [];
  /** Called after a change: of one entry, or (without one) of the list. @type {(entry?: Entry) => void} */
  onchange = () => {};
  /** Called when a turn runs that this page did not ask for. @type {(turnId: string) => void} */
  onstranger = () => {};
  /** Called once for each turn that ends. @type {(turn: Turn) => void} */
  onended = () => {};

  /** @type {Map<string, Turn>} */
  #turns = new Map();
  /** @type {Set<string>} */
  #strangers = new Set();
  /** Events that came while it was open whose they are. @type {Frame[]} */
  #held = [];

  /** The turn that is being answered, also before the gateway has named it. */
  get active() {
    const last = this.entries.findLast((entry) => entry.kind === "answer");
    return last && last.kind === "answer" && !last.ended ? last : null;
  }

  /** Turns that have an id and no ending: what a new connection has to go on reading. */
  get running() {
    return [...this.#turns.values()].filter((turn) => !turn.ended);
  }

  /** What was asked first, for a title. */
  get opening() {
    const first = this.entries.find((entry) => entry.kind === "question");
    return first ? first.text : "";
  }

  /**
   * Shows a question at once, with an answer that waits for it.
   * @param {string} text @param {string} clientMessageId @param {number} now `performance.now()`
   */
  ask(text, clientMessageId, now) {
    /** @type {Question} */
    const question = {
      kind: "question", text, messageId: "", turnId: "", clientMessageId, state: "sending", problem: null,
    };
    const turn = new Turn();
    turn.askedAt = now;
    this.entries = [...this.entries, question, turn];
    this.onchange();
    return { question, turn };
  }

  /** The gateway took the question. @param {Question} question @param {Turn} turn @param {string} turnId */
  accepted(question, turn, turnId) {
    question.state = "sent";
    question.problem = null;
    question.turnId = turnId;
    const known = this.#turns.get(turnId); // the same message sent twice is one turn
    if (known && known !== turn) this.entries = this.entries.filter((entry) => entry !== turn);
    else {
      turn.id = turnId;
      this.#turns.set(turnId, turn);
    }
    this.#release();
    this.onchange();
  }

  /**
   * The gateway did not take it.
   * @param {Question} question @param {Turn} turn @param {import("./problems.js").Problem} problem
   */
  refused(question, turn, problem) {
    question.state = "failed";
    question.problem = problem;
    this.entries = this.entries.filter((entry) => entry !== turn);
    this.#release();
    this.onchange();
  }

  /** Shows a refused question as being sent once more. @param {Question} question @param {number} now */
  askAgain(question, now) {
    question.state = "sending";
    question.problem = null;
    const turn = new Turn();
    turn.askedAt = now;
    this.entries = [...this.entries.filter((entry) => entry !== question), question, turn];
    this.onchange();
    return turn;
  }

  /** @param {Entry} entry */
  remove(entry) {
    this.entries = this.entries.filter((other) => other !== entry);
    this.onchange();
  }

  /** @param {string} turnId @returns {Turn} the one known, or a new one at the end */
  turn(turnId) {
    let turn = this.#turns.get(turnId);
    if (!turn) {
      turn = new Turn();
      turn.id = turnId;
      this.#turns.set(turnId, turn);
      this.entries = [...this.entries, turn];
      this.onchange();
    }
    return turn;
  }

  /**
   * Puts in the question of a turn that runs, where the record does not have it yet.
   * @param {string} turnId @param {string} text
   * @returns {boolean} whether the turn is known here
   */
  recall(turnId, text) {
    const turn = this.#turns.get(turnId);
    if (!turn) return false;
    if (this.entries.some((entry) => entry.kind === "question" && entry.turnId === turnId)) return true;
    const question = entryOf({ role: "user", content: text, turn_id: turnId });
    this.entries = this.entries.flatMap((entry) => (entry === turn ? [question, turn] : [entry]));
    this.onchange();
    return true;
  }

  /** @param {Frame} frame an event of one of this conversation's turns */
  take(frame) {
    const turnId = /** @type {string} */ (frame.turn_id);
    const turn = this.#turns.get(turnId);
    if (!turn) {
      this.#held.push(frame);
      if (!this.entries.some((entry) => entry.kind === "answer" && !entry.id && !entry.ended)) this.#release();
      return;
    }
    if (!frame.id || !turn.take(frame.id, frame.event, frame.data ?? {}, performance.now())) return;
    if (frame.event === "message.started") this.#dropCopies(turn);
    this.onchange(turn);
    if (turn.ended) this.onended(turn);
  }

  /**
   * Merges the gateway's record: keeps what is known, fills in what is missing, in the record's order.
   * @param {ConversationRecord} record
   */
  merge(record) {
    this.id = record.id;
    this.name = record.name || this.name;
    const entries = [...this.entries];
    let at = 0;
    for (const message of record.messages ?? []) {
      if (message.role !== "user" && message.role !== "assistant") continue;
      const found = entries.findIndex((entry, i) => i >= at && isSame(entry, message));
      if (found >= 0) absorb(entries[found], message);
      else if (message.role === "user" || message.content || message.state) entries.splice(at, 0, entryOf(message));
      else continue;
      at = found >= 0 ? found + 1 : at + 1;
    }
    this.entries = entries;
    this.onchange();
    if (record.active_turn_id) {
      this.#strangers.delete(record.active_turn_id);
      if (!this.active || this.active.id) this.turn(record.active_turn_id);
    }
    this.#release();
    for (const entry of this.entries) if (entry.kind === "answer") this.onchange(entry);
  }

  /**
   * Ends a turn whose events cannot be had any more with what the record says of it.
   * @param {string} turnId @param {ConversationRecord} record @param {import("./problems.js").Problem | undefined} problem
   */
  settle(turnId, record, problem) {
    const turn = this.#turns.get(turnId);
    if (!turn || turn.ended || record.active_turn_id === turnId) return;
    const message = (record.messages ?? []).findLast((m) => isSame(turn, m));
    turn.close(message ?? null, problem?.json ?? { code: "history_lost" });
    this.onchange(turn);
    this.onended(turn);
  }

  /** Gives held events to their turns; a turn that nobody here asked for is reported once and keeps its events held. */
  #release() {
    const held = this.#held;
    this.#held = [];
    for (const frame of held) {
      const turnId = /** @type {string} */ (frame.turn_id);
      if (this.#turns.has(turnId)) this.take(frame);
      else {
        this.#held.push(frame);
        if (!this.#strangers.has(turnId)) {
          this.#strangers.add(turnId);
          this.onstranger(turnId);
        }
      }
    }
  }

  /** The record may already hold the answer that is being written. @param {Turn} turn */
  #dropCopies(turn) {
    const copies = this.entries.filter(
      (entry) => entry.kind === "answer" && entry !== turn && !!entry.messageId && entry.messageId === turn.messageId);
    if (!copies.length) return;
    this.entries = this.entries.filter((entry) => !copies.includes(entry));
    this.onchange();
  }
}
