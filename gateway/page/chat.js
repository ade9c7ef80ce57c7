/** What a person does with conversations: open, ask, stop, rate, and get back to them after anything breaks. */
import { Conversation } from "./conversation.js";
import { Problem } from "./problems.js";

/**
 * @typedef {import("./conversation.js").Question} Question
 * @typedef {import("./record.js").ConversationRecord} ConversationRecord
 * @typedef {import("./turn.js").Turn} Turn
 * @typedef {{conversationId: string, text: string, clientMessageId: string}} Unsent
 */

const UNSENT = "hyperleap.unsent"; // the message on its way, in this tab
const ASKED = "hyperleap.asked."; // the question of a conversation's running turn, for all tabs: the record has it at the end

export class Chat {
  #api;
  #link;
  #persona;
  /** @type {Map<string, Conversation>} */
  #conversations = new Map();
  /** @type {WeakMap<Turn, Question>} */
  #questions = new WeakMap();
  /** @type {Map<string, Promise<void>>} */
  #refreshing = new Map();
  /** Other tabs of this browser; they learn of a turn here even where nothing is pushed to them. */
  #tabs = new BroadcastChannel("hyperleap.chat");
  /** The one on the page. */
  current = new Conversation();
  /** Something about a conversation changed that is shown outside of the thread. @type {(conversation: Conversation) => void} */
  onchange = () => {};
  /** A conversation was made. @type {(record: ConversationRecord) => void} */
  oncreated = () => {};
  /** Another conversation is on the page now. @type {(conversation: Conversation) => void} */
  onshown = () => {};

  /** @param {import("./api.js").Api} api @param {import("./link.js").Link} link @param {string} persona an alias */
  constructor(api, link, persona) {
    this.#api = api;
    this.#link = link;
    this.#persona = persona;
    this.#tabs.onmessage = ({ data: { conversationId, turnId, text } }) => {
      const conversation = this.#conversations.get(conversationId);
      if (conversation && !conversation.recall(turnId, text)) this.refresh(conversation).catch(() => {});
    };
  }

  /** Shows an empty conversation; its first message makes it. */
  begin() {
    this.#leave();
    this.current = this.#watch(new Conversation());
    this.onshown(this.current);
  }

  /** @param {string} id @throws {Problem} when it cannot be read */
  async open(id) {
    const known = this.#conversations.get(id);
    this.#leave();
    this.current = known ?? this.#watch(new Conversation());
    this.current.id = id;
    this.#conversations.set(id, this.current);
    if (known) this.onshown(known);
    try {
      await this.refresh(this.current);
    } catch (error) {
      if (!known) this.#conversations.delete(id);
      throw error;
    }
    if (!known && this.current.id === id) this.onshown(this.current);
    this.#link.follow(id);
    this.#remindOfUnsent(this.current);
  }

  /** Reads the gateway's record again and goes on reading what runs. @param {Conversation} conversation */
  async refresh(conversation) {
    const { id } = conversation;
    let reading = this.#refreshing.get(id);
    if (!reading) {
      reading = this.#read(conversation).finally(() => this.#refreshing.delete(id));
      this.#refreshing.set(id, reading);
    }
    return reading;
  }

  /** @param {string} text */
  ask(text) {
    const { question, turn } = this.current.ask(text, newId(), performance.now());
    return this.#submit(this.current, question, turn);
  }

  /** Sends a refused question once more; the gateway knows it by its id and takes it once. @param {Question} question */
  retry(question) {
    return this.#submit(this.current, question, this.current.askAgain(question, performance.now()));
  }

  /** Asks the question of a failed answer again, as a new turn. @param {Turn} turn */
  askAgain(turn) {
    const { entries } = this.current;
    const before = entries.slice(0, entries.indexOf(turn)).findLast((entry) => entry.kind === "question");
    const question = this.#questions.get(turn) ?? before;
    if (question && question.kind === "question") this.ask(question.text);
  }

  /** Stops the answer that is being written, also one that the gateway has not named yet. */
  async stop() {
    const conversation = this.current;
    const turn = conversation.active;
    if (!turn || turn.stopping) return;
    turn.stopping = true;
    conversation.onchange(turn);
    this.onchange(conversation);
    if (turn.id) await this.#stop(conversation, turn);
  }

  /** @param {Turn} turn @param {import("./turn.js").Feedback} feedback @throws {Problem} */
  async rate(turn, { score, comments, tags }) {
    const body = { score, ...(comments ? { comments } : {}), ...(tags?.length ? { tags } : {}) };
    await this.#api.json("PUT", `/v1/conversations/${this.current.id}/messages/${turn.messageId}/feedback`, { body });
    turn.feedback = { score, comments, tags };
  }

  /** @param {import("./socket.js").Frame} frame */
  take(frame) {
    this.#conversations.get(frame.conversation_id ?? "")?.take(frame);
  }

  /** The link is new: ask it for everything that is being followed. */
  resume() {
    for (const { id, running } of this.#conversations.values()) {
      for (const turn of running) this.#link.read(turn.id, id, turn.cursor);
    }
    if (!this.current.id) return;
    this.#link.follow(this.current.id);
    this.refresh(this.current).catch(() => {});
  }

  /** A turn's events stopped coming: go on after the last. @param {string} turnId @param {string} conversationId */
  mend(turnId, conversationId) {
    const conversation = this.#conversations.get(conversationId);
    if (!conversation) return;
    const turn = conversation.running.find(({ id }) => id === turnId);
    if (turn) this.#link.read(turnId, conversationId, turn.cursor);
    else this.refresh(conversation).catch(() => {}); // perhaps not one event of it came
  }

  /** A turn's events cannot be had: believe the record. @param {string} turnId @param {Problem} [problem] */
  async gone(turnId, problem) {
    for (const conversation of this.#conversations.values()) {
      if (!conversation.running.some((turn) => turn.id === turnId)) continue;
      const record = await this.#api.json("GET", `/v1/conversations/${conversation.id}`).catch(() => null);
      if (!record) continue;
      conversation.merge(record);
      if (problem?.code === "invalid_cursor" && record.active_turn_id === turnId) {
        conversation.turn(turnId).rewind();
        this.#link.read(turnId, conversation.id, "");
      } else conversation.settle(turnId, record, problem);
    }
  }

  /** @param {Conversation} conversation */
  async #read(conversation) {
    /** @type {ConversationRecord} */
    const record = await this.#api.json("GET", `/v1/conversations/${conversation.id}`);
    const running = new Set(conversation.running);
    conversation.merge(record);
    if (!record.active_turn_id) localStorage.removeItem(ASKED + conversation.id);
    for (const turn of conversation.running) {
      if (running.has(turn)) continue; // it is being read
      const asked = JSON.parse(localStorage.getItem(ASKED + conversation.id) ?? "null");
      if (asked?.turnId === turn.id) conversation.recall(turn.id, asked.text);
      this.#link.read(turn.id, conversation.id, turn.cursor);
    }
    this.onchange(conversation);
  }

  /** @param {Conversation} conversation @param {Question} question @param {Turn} turn */
  async #submit(conversation, question, turn) {
    this.#questions.set(turn, question);
    this.onchange(conversation);
    try {
      if (!conversation.id) await this.#create(conversation);
      const { text, clientMessageId } = question;
      sessionStorage.setItem(UNSENT, JSON.stringify({ conversationId: conversation.id, text, clientMessageId }));
      const turnId = await this.#link.start({ conversationId: conversation.id, message: text, clientMessageId });
      sessionStorage.removeItem(UNSENT);
      localStorage.setItem(ASKED + conversation.id, JSON.stringify({ turnId, text }));
      conversation.accepted(question, turn, turnId);
      this.#tabs.postMessage({ conversationId: conversation.id, turnId, text });
      if (turn.stopping) await this.#stop(conversation, turn);
    } catch (error) {
      if (!turn.id) conversation.refused(question, turn, Problem.from(error));
    }
    this.onchange(conversation);
  }

  /** @param {Conversation} conversation */
  async #create(conversation) {
    /** @type {ConversationRecord} */
    const record = await this.#api.json("POST", "/v1/conversations", { body: { persona: this.#persona } });
    conversation.id = record.id;
    this.#conversations.set(record.id, conversation);
    this.oncreated(record);
    this.#link.follow(record.id);
  }

  /** @param {Conversation} conversation @param {Turn} turn */
  async #stop(conversation, turn) {
    try {
      await this.#link.stop(turn.id);
    } catch {
      turn.stopping = false; // let the button be pressed again
      conversation.onchange(turn);
      this.onchange(conversation);
    }
  }

  /** What is not on the page is not followed; a turn that runs there is read to its end. */
  #leave() {
    if (this.current.id) this.#link.leave(this.current.id);
  }

  /** @param {Conversation} conversation */
  #watch(conversation) {
    conversation.onended = (turn) => {
      localStorage.removeItem(ASKED + conversation.id);
      if (!conversation.entries.some((entry) => entry.kind === "question" && entry.turnId === turn.id)) {
        this.refresh(conversation).catch(() => {}); // asked on another device: the record has the question now
      }
      this.onchange(conversation);
    };
    conversation.onstranger = () => this.refresh(conversation).catch(() => {});
    return conversation;
  }

  /**
   * Offers again a message that was on its way when the page was left, and that the record does not have.
   * @param {Conversation} conversation
   */
  #remindOfUnsent(conversation) {
    /** @type {Unsent | null} */
    const unsent = JSON.parse(sessionStorage.getItem(UNSENT) ?? "null");
    if (!unsent || unsent.conversationId !== conversation.id) return;
    const last = conversation.entries.findLast((entry) => entry.kind === "question");
    if (last?.kind === "question" && last.text === unsent.text) return;
    const { question, turn } = conversation.ask(unsent.text, unsent.clientMessageId, 0);
    conversation.refused(question, turn, new Problem({ code: "not_sent" }));
  }
}

/** A random id; `crypto.randomUUID` exists only where the page came over TLS or from this machine. */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
