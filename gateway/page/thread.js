/** The conversation on the page: keeps the drawn entries in step with the model, and the newest in sight. */
import { AnswerView } from "./answer.js";
import { copyText, h } from "./dom.js";
import { QuestionView } from "./question.js";

/**
 * @typedef {import("./conversation.js").Conversation} Conversation
 * @typedef {import("./conversation.js").Entry} Entry
 * @typedef {QuestionView | AnswerView} EntryView
 * @typedef {import("./conversation.js").Question} Question
 * @typedef {import("./turn.js").Turn} Turn
 * @typedef {{retry: (question: Question) => void, edit: (question: Question) => void, askAgain: (turn: Turn) => void,
 *            rate: (turn: Turn, feedback: import("./turn.js").Feedback) => Promise<void>}} Actions
 */

const NEAR_PX = 80; // this close to the end counts as being there
const SHARE = 6; // drawing may take one part in this many of the time

export class Thread {
  #scroller;
  #list;
  #jump;
  #actions;
  /** @type {Conversation | null} */
  #conversation = null;
  /** @type {Map<Entry, EntryView>} */
  #views = new Map();
  /** @type {Set<Entry>} */
  #stale = new Set();
  #scheduled = false;
  #cost_ms = 0;
  #pinned = true;

  /** @param {HTMLElement} scroller @param {HTMLElement} list @param {HTMLElement} jump @param {Actions} actions */
  constructor(scroller, list, jump, actions) {
    this.#scroller = scroller;
    this.#list = list;
    this.#jump = jump;
    this.#actions = actions;
    let lastTop = 0;
    scroller.addEventListener("scroll", () => {
      const { scrollTop, scrollHeight, clientHeight } = scroller;
      const near = scrollHeight - scrollTop - clientHeight < NEAR_PX;
      if (near) this.#pin(true);
      else if (scrollTop < lastTop) this.#pin(false); // only a person scrolls up; growth never does
      lastTop = scrollTop;
    }, { passive: true });
    jump.addEventListener("click", () => this.toEnd("smooth"));
    const growth = new ResizeObserver(() => this.#stick()); // of the window, and of anything that opens below an answer
    growth.observe(scroller);
    growth.observe(list);
    list.addEventListener("click", (event) => copyCode(/** @type {Element} */ (event.target)));
  }

  /** @param {Conversation} conversation */
  show(conversation) {
    if (this.#conversation === conversation) return;
    if (this.#conversation) this.#conversation.onchange = () => {};
    this.#stale.clear();
    this.#conversation = conversation;
    this.#views.clear();
    this.#list.replaceChildren();
    conversation.onchange = (entry) => this.#changed(entry);
    this.#arrange();
    for (const entry of conversation.entries) this.#views.get(entry)?.update(entry === conversation.entries.at(-1));
    this.toEnd("instant");
  }

  /** @param {ScrollBehavior} behavior */
  toEnd(behavior) {
    this.#pin(true);
    this.#scroller.scrollTo({ top: this.#scroller.scrollHeight, behavior });
  }

  /** @param {Entry} [entry] */
  #changed(entry) {
    if (entry) this.#stale.add(entry);
    else {
      this.#arrange();
      for (const each of this.#conversation?.entries ?? []) this.#stale.add(each);
    }
    if (this.#scheduled) return;
    this.#scheduled = true;
    // one drawing a frame, and fewer when a long answer makes each one dear; a hidden page has no frames
    const pause_ms = document.hidden ? 250 : this.#cost_ms > 6 ? this.#cost_ms * SHARE : 0;
    if (pause_ms) setTimeout(() => this.#draw(), pause_ms);
    else requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    const began = performance.now();
    this.#scheduled = false;
    const entries = this.#conversation?.entries ?? [];
    for (const entry of this.#stale) this.#views.get(entry)?.update(entry === entries.at(-1));
    this.#stale.clear();
    this.#stick();
    this.#cost_ms = performance.now() - began;
  }

  /** Makes the list's children the entries' views, in order, moving as little as possible. */
  #arrange() {
    const entries = this.#conversation?.entries ?? [];
    const wanted = new Set(entries);
    for (const [entry, view] of this.#views) {
      if (wanted.has(entry)) continue;
      view.node.remove();
      this.#views.delete(entry);
    }
    entries.forEach((entry, i) => {
      let view = this.#views.get(entry);
      if (!view) {
        view = entry.kind === "answer" ? new AnswerView(entry, this.#actions) : new QuestionView(entry, this.#actions);
        this.#views.set(entry, view);
      }
      if (this.#list.children[i] !== view.node) this.#list.insertBefore(view.node, this.#list.children[i] ?? null);
    });
  }

  #stick() {
    if (this.#pinned) this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }

  /** @param {boolean} pinned */
  #pin(pinned) {
    this.#pinned = pinned;
    this.#jump.hidden = pinned;
  }
}

/** @param {Element} target */
async function copyCode(target) {
  const button = target.closest("[data-copy=code]");
  const code = button?.closest(".code")?.querySelector("code");
  if (!button || !code) return;
  await copyText((code.textContent ?? "").replace(/\n$/, ""));
  button.replaceChildren(h("span", {}, "Copied"));
  setTimeout(() => (button.textContent = "Copy"), 1500);
}
