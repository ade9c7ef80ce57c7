/** The chat bubble on somebody's site: a button, a panel and one conversation, in a shadow tree of their own. */
import { h, icon } from "../dom.js";
import { finishedWords, stoppedWords, words } from "../problems.js";
import { Client } from "./client.js";
import { Prose } from "./prose.js";
import { sheet } from "./sheet.js";

/** @typedef {{url: string, key: string, persona: string, title: string, greeting: string, theme: string}} Options */

const PHONE = "(max-width: 480px)"; // as in the sheet: there the panel is all there is, and the page behind it is inert
const KEPT = 40; // paragraphs that a screen reader can go back to in the log

/** The site's storage; this page's own memory where the browser allows none, or has no room left. */
const memory = (() => {
  const kept = new Map();
  /** @param {() => any} use @returns {any} what it says, or undefined where storage cannot be used */
  const tried = (use) => {
    try {
      return use();
    } catch {
      return undefined;
    }
  };
  return {
    getItem: (/** @type {string} */ name) => kept.get(name) ?? tried(() => localStorage.getItem(name)) ?? null,
    setItem(/** @type {string} */ name, /** @type {string} */ value) {
      kept.set(name, value);
      tried(() => localStorage.setItem(name, value));
    },
    removeItem(/** @type {string} */ name) {
      kept.delete(name);
      tried(() => localStorage.removeItem(name));
    },
  };
})();

export class Bubble {
  #client;
  #options;
  #place;
  /** @type {any} */
  #conversation;
  /** @type {any} the answer that is being written */
  #turn;
  #busy = false;
  #read = false;
  /** @type {Promise<void> | undefined} the conversation of the last visit is being shown */
  #recalled;
  /** @type {Set<string>} the turns that this page began, which stand in the thread */
  #begun = new Set();
  #epoch = 0; // of the thread: what awaited something compares it, and goes no further where another was begun
  #host = h("hyperleap-chat");
  #bubble = h("button", { type: "button", class: "bubble", "aria-expanded": "false", "aria-haspopup": "dialog", "data-testid": "bubble", onclick: () => this.toggle() }, icon("chat"));
  #past = h("div", { class: "past" }); // above what is written meanwhile
  #thread = h("div", { class: "thread", role: "region", "aria-label": "Messages", tabindex: 0, "data-testid": "thread" }, this.#past);
  #spoken = h("div", { class: "unseen", role: "log", "aria-live": "polite", "aria-label": "Answers", "data-testid": "spoken" });
  #status = h("p", { class: "unseen", role: "status", "data-testid": "status" });
  #input = h("textarea", { rows: 1, placeholder: "Write a message", "aria-label": "Message", enterkeyhint: "send", autofocus: true, "data-testid": "message", onkeydown: (event) => this.#typed(event) });
  #send = h("button", { type: "submit", class: "send", "data-testid": "send" });
  #panel = h("dialog", { "aria-labelledby": "title", "data-testid": "panel", onkeydown: (event) => this.#pressed(event), onclose: () => this.#closed() });

  /** @param {Options} options */
  constructor(options) {
    this.#options = options;
    const { url, key, title, theme, persona } = options;
    this.#client = new Client({ url, key, storage: memory });
    this.#place = `hyperleap.chat.${/^hgp_([a-z0-9-]+)/.exec(key)?.[1]}.${persona}`;
    if (theme) this.#host.dataset.theme = theme;
    const root = this.#host.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [sheet];
    const tool = (/** @type {string} */ drawing, /** @type {string} */ label, /** @type {() => void} */ onclick) =>
      h("button", { type: "button", class: "tool", "aria-label": label, title: label, "data-testid": drawing, onclick }, icon(drawing));
    this.#panel.append(
      h("header", {}, h("h2", { id: "title" }, title), tool("retry", "New conversation", () => this.#begin()), tool("close", "Close", () => this.#panel.close())),
      this.#thread, this.#spoken, this.#status,
      h("form", { onsubmit: (event) => this.#submitted(event) }, this.#input, this.#send));
    root.append(this.#bubble, this.#panel);
    this.#show();
    document.body.append(this.#host);
  }

  toggle() {
    if (this.#panel.open) return this.#panel.close();
    if (matchMedia(PHONE).matches) this.#panel.showModal();
    else this.#panel.show();
    this.#show();
    this.#input.focus();
    if (!this.#read) this.#recalled = this.#recall();
    return undefined;
  }

  #closed() {
    this.#show();
    this.#bubble.focus();
  }

  /** What is shown of the state: of the panel, and of what is being done. */
  #show() {
    const { open } = this.#panel;
    this.#bubble.setAttribute("aria-expanded", `${open}`);
    this.#bubble.setAttribute("aria-label", `${open ? "Close" : "Open"} ${this.#options.title}`);
    this.#bubble.replaceChildren(icon(open ? "close" : "chat"));
    const label = this.#busy ? "Stop the answer" : "Send";
    this.#send.setAttribute("aria-label", label);
    this.#send.title = label;
    this.#send.replaceChildren(icon(this.#busy ? "stop" : "send"));
  }

  /** @param {KeyboardEvent} event */
  #pressed(event) {
    event.stopPropagation(); // the site's own shortcuts are not meant
    if (event.key !== "Escape" || event.isComposing) return;
    event.preventDefault();
    this.#panel.close();
  }

  /** @param {KeyboardEvent} event */
  #typed(event) {
    // Enter that ends the composition of a character is not meant for us
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    if (this.#busy) this.#status.textContent = "An answer is still being written.";
    else this.#ask();
  }

  /** @param {SubmitEvent} event */
  #submitted(event) {
    event.preventDefault();
    if (!this.#busy) this.#ask();
    else this.#turn?.stop().catch((/** @type {unknown} */ error) => this.#tell(this.#thread, error));
  }

  #begin() {
    this.#epoch++;
    this.#turn?.leave();
    this.#turn = this.#recalled = undefined;
    this.#read = true;
    this.#thread.replaceChildren(this.#past);
    this.#forget();
    this.#work(false);
    this.#input.focus();
  }

  /** Puts the greeting where the conversation was; what is being written stays. */
  #forget() {
    const { greeting } = this.#options;
    this.#conversation = undefined;
    memory.removeItem(this.#place);
    this.#past.replaceChildren(...(greeting ? [h("div", { class: "answer" }, greeting)] : []));
  }

  /** @returns {{id?: string, asked?: any}} the conversation of the last visit; what the site's other scripts left there counts as none */
  #kept() {
    try {
      const { id, asked } = JSON.parse(memory.getItem(this.#place) ?? "{}");
      return typeof id === "string" ? { id, asked } : {};
    } catch {
      return {};
    }
  }

  /** Shows the conversation of the last visit, and goes on reading an answer that is still being written. */
  async #recall() {
    const epoch = this.#epoch;
    this.#read = true;
    const { id, asked } = this.#kept();
    if (!id) return this.#forget();
    const conversation = (this.#conversation = this.#client.conversation(id));
    try {
      const { messages, active_turn_id: active } = await conversation.read();
      if (epoch !== this.#epoch) return undefined;
      this.#past.replaceChildren(); // an earlier attempt's problem
      for (const { role, content, turn_id } of messages) {
        if (this.#begun.has(turn_id)) continue; // sent since an attempt that failed
        if (role === "user") this.#say(content ?? "", this.#past);
        else if (role === "assistant" && turn_id !== active) new Prose(this.#answer(false, this.#past)).show(content ?? "");
      }
      if (!active || this.#begun.has(active)) return undefined;
      const last = messages[messages.length - 1];
      if (asked?.turn === active && last?.turn_id !== active) this.#say(asked.text, this.#past); // the record has it at the end
      return await this.#follow(conversation.turn(active), this.#answer(true, this.#past));
    } catch (error) {
      if (epoch !== this.#epoch) return undefined;
      if (/** @type {any} */ (error).code === "not_found") return this.#forget(); // another visitor's, or deleted
      this.#read = false; // opening the panel again tries again
      this.#past.replaceChildren();
      return this.#tell(this.#past, error);
    }
  }

  #ask() {
    const text = this.#input.value.trim();
    if (!text) return;
    this.#input.value = "";
    this.#say(text);
    void this.#submit(text, `${Date.now()}-${Math.random()}`);
  }

  /** @param {string} text @param {string} clientMessageId the gateway takes a message once */
  async #submit(text, clientMessageId) {
    const epoch = this.#epoch;
    const answer = this.#answer();
    this.#work(true);
    try {
      await this.#recalled; // it says which conversation this goes into, and an answer there comes first
      if (epoch !== this.#epoch) return;
      this.#work(true);
      const conversation = this.#conversation ?? (await this.#client.create({ persona: this.#options.persona, idempotencyKey: clientMessageId }));
      if (epoch !== this.#epoch) return;
      this.#conversation = conversation;
      const turn = await conversation.send(text, { clientMessageId });
      if (epoch !== this.#epoch) return turn.leave();
      this.#begun.add(turn.id);
      memory.setItem(this.#place, JSON.stringify({ id: turn.conversationId, asked: { turn: turn.id, text } }));
      await this.#follow(turn, answer);
    } catch (error) {
      if (epoch !== this.#epoch) return;
      answer.classList.remove("waiting");
      this.#tell(answer, error, () => {
        answer.remove();
        void this.#submit(text, clientMessageId);
      });
      this.#work(false);
    }
  }

  /** Shows an answer as it is written. @param {any} turn @param {HTMLElement} answer */
  async #follow(turn, answer) {
    this.#turn = turn;
    this.#work(true);
    const prose = new Prose(answer);
    let drawn = 0, spoken = 0;
    const show = (/** @type {boolean} */ ended) => {
      drawn = 0;
      const stays = this.#thread.scrollHeight - this.#thread.scrollTop - this.#thread.clientHeight < 60;
      const { text } = turn;
      answer.classList.toggle("waiting", !text && !ended);
      prose.show(text);
      const whole = ended ? text.length : text.lastIndexOf("\n\n");
      if (whole > spoken) this.#speak(text.slice(spoken, (spoken = whole)));
      if (stays) this.#thread.scrollTop = this.#thread.scrollHeight;
    };
    try {
      for await (const { type } of turn) if (type === "message.delta") drawn ||= requestAnimationFrame(() => show(false));
      const { state, reason, finishReason, error } = await turn.done();
      cancelAnimationFrame(drawn);
      if (!answer.isConnected) return; // a new conversation was begun
      show(true);
      answer.dataset.state = state;
      const note = state === "stopped" ? stoppedWords(reason) : finishedWords(finishReason);
      if (note) answer.append(h("p", { class: "note" }, note));
      if (error) this.#tell(answer, error);
      else this.#status.textContent = note || "Answer complete.";
    } finally {
      if (this.#turn === turn) {
        this.#turn = undefined;
        this.#work(false);
      }
    }
  }

  /** @param {boolean} busy */
  #work(busy) {
    if (busy && !this.#busy) this.#status.textContent = "Answering…";
    this.#busy = busy;
    this.#show();
  }

  /** @param {string} text a finished paragraph or more, to be read out once */
  #speak(text) {
    this.#spoken.append(h("p", {}, text.trim()));
    while (this.#spoken.childElementCount > KEPT) this.#spoken.firstElementChild?.remove();
  }

  /** @param {string} text @param {HTMLElement} where */
  #say(text, where = this.#thread) {
    where.append(h("div", { class: "question", "data-testid": "question" }, h("span", { class: "unseen" }, "You: "), text));
  }

  #answer(waits = true, where = this.#thread) {
    const answer = h("div", { class: waits ? "answer waiting" : "answer", "data-testid": "answer" });
    where.append(answer);
    this.#thread.scrollTop = this.#thread.scrollHeight;
    return answer;
  }

  /** @param {HTMLElement} where @param {any} error @param {() => void} [again] */
  #tell(where, error, again) {
    const { title, text } = words({ code: error.code, detail: error.message });
    const retry = again && h("button", { type: "button", class: "again", "data-testid": "again", onclick: again }, "Try again");
    where.append(h("p", { class: "problem", "data-testid": "problem" }, `${title}. ${text}`, retry));
    this.#status.textContent = `${title}. ${text}`;
  }
}
