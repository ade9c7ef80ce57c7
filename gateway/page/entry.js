/** How a question and an answer look. */
import { announce, readOut } from "./announcer.js";
import { drawCitations } from "./citations.js";
import { copyText, h, icon } from "./dom.js";
import { FeedbackView } from "./feedback.js";
import { MarkdownView } from "./markdown.js";
import { finishedWords, stoppedWords, words } from "./problems.js";

/**
 * @typedef {import("./turn.js").Turn} Turn
 * @typedef {import("./conversation.js").Question} Question
 * @typedef {{retry: (question: Question) => void, edit: (question: Question) => void, askAgain: (turn: Turn) => void,
 *            rate: (turn: Turn, feedback: import("./turn.js").Feedback) => Promise<void>}} Actions
 */

export class QuestionView {
  #note = h("div", { class: "question-note" });

  /** @param {Question} question @param {Actions} actions */
  constructor(question, actions) {
    this.question = question;
    this.actions = actions;
    this.node = h("article", { class: "question", "data-testid": "question", "aria-label": "You" },
      h("div", { class: "bubble" }, question.text), this.#note);
  }

  update() {
    const { question, actions } = this;
    this.node.dataset.state = question.state;
    if (question.state !== "failed" || !question.problem) return this.#note.replaceChildren();
    const { title, text, reference } = words(question.problem);
    this.#note.replaceChildren(h("div", { class: "problem", role: "alert", "data-testid": "problem" },
      icon("warning"),
      h("div", {},
        h("p", {}, h("strong", {}, title, ". "), text, waitWords(question.problem.retryAfter_s)),
        reference && h("p", { class: "reference" }, `Reference ${reference}`),
        h("div", { class: "problem-actions" },
          h("button", { type: "button", class: "button small", "data-testid": "retry", onclick: () => actions.retry(question) }, icon("retry"), "Send again"),
          h("button", { type: "button", class: "button quiet small", "data-testid": "edit", onclick: () => actions.edit(question) }, icon("edit"), "Edit")))));
    return undefined;
  }
}

export class AnswerView {
  #prose = h("div", { class: "prose", "data-testid": "answer-text" });
  #waiting = h("div", { class: "waiting", "data-testid": "waiting" });
  #notes = h("div", { class: "notes" });
  #sources = h("div", {});
  #foot = h("footer", { class: "answer-foot" });
  #panel = h("div", { class: "feedback-panel" });
  #markdown = new MarkdownView(this.#prose);
  #feedback;
  #drawn = "";
  #sourced = -1;
  #noted = "";
  #wasLive = false;

  /** @param {Turn} turn @param {Actions} actions */
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.#feedback = new FeedbackView((feedback) => actions.rate(turn, feedback), this.#panel);
    this.#markdown.onblock = (text) => this.#wasLive && readOut(text);
    this.node = h("article", { class: "answer", "data-testid": "answer", "aria-label": "Assistant" },
      h("div", { class: "mark", "aria-hidden": "true" }),
      h("div", { class: "answer-body" }, this.#waiting, this.#prose, this.#notes, this.#sources, this.#foot, this.#panel));
  }

  /** @param {boolean} last whether it is the newest of its conversation */
  update(last = false) {
    const { turn } = this;
    const before = this.node.dataset.state;
    this.node.dataset.state = turn.state;
    this.node.dataset.turn = turn.id;
    if (turn.intact !== null) this.node.dataset.intact = String(turn.intact);
    this.node.setAttribute("aria-busy", String(!turn.ended));
    if (!turn.ended) this.#wasLive = true;
    if (before !== turn.state) this.#tell();
    this.#showWaiting();
    const wanted = `${turn.ended}${turn.text}`;
    if (wanted !== this.#drawn) {
      this.#drawn = wanted;
      this.#markdown.render(turn.text, turn.ended);
    }
    if (this.#sourced !== turn.citations.length) {
      this.#sourced = turn.citations.length;
      this.#sources.replaceChildren(...(turn.citations.length ? [drawCitations(turn.citations)] : []));
    }
    this.#feedback.show(turn.feedback);
    const noted = [turn.state, last, turn.moderations.length, turn.extras.length].join();
    if (noted !== this.#noted) {
      this.#noted = noted;
      this.#notes.replaceChildren(...this.#extras(), ...this.#ending(last));
    }
    if (turn.ended) this.#showFoot();
  }

  #tell() {
    const { state, error, stopReason } = this.turn;
    if (!this.#wasLive) return;
    if (state === "waiting") announce("The assistant is answering.");
    else if (state === "completed") announce("Answer complete.");
    else if (state === "stopped") announce(stoppedWords(stopReason));
    else if (state === "failed") announce(`The answer failed. ${words(error ?? {}).title}.`);
  }

  #showWaiting() {
    const { turn } = this;
    const waits = !turn.ended && !turn.text;
    this.#waiting.hidden = !waits;
    if (!waits) return;
    const text = turn.stopping ? "Stopping…" : turn.state === "queued" ? queueWords(turn.queue) : "";
    this.#waiting.replaceChildren(h("span", { class: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i")), text && h("span", {}, text));
  }

  /** How it ended, where that needs words. @param {boolean} last */
  #ending(last) {
    const { turn, actions } = this;
    const { error } = turn;
    if (turn.state === "stopped") {
      return [h("p", { class: "note", "data-testid": "stopped" }, icon("stop"), stoppedWords(turn.stopReason))];
    }
    if (turn.state === "failed") {
      const { title, text } = words(error ?? {});
      return [h("div", { class: "problem", "data-testid": "problem" }, icon("warning"), h("div", {},
        h("p", {}, h("strong", {}, title, ". "), text, waitWords(error?.retry_after_s ?? 0)),
        last && h("div", { class: "problem-actions" },
          h("button", { type: "button", class: "button small", "data-testid": "ask-again", onclick: () => actions.askAgain(turn) }, icon("retry"), "Ask again"))))];
    }
    const finished = turn.ended ? finishedWords(turn.finishReason) : "";
    return finished ? [h("p", { class: "note" }, icon("warning"), finished)] : [];
  }

  /** What came beside the text: withheld parts, tools. */
  #extras() {
    const { moderations, extras } = this.turn;
    const notes = [];
    const withheld = moderations.filter((m) => m.filtered);
    if (withheld.length) {
      const kinds = withheld.map((m) => [m.category, m.severity && `(${m.severity})`].filter(Boolean).join(" ")).join(", ");
      notes.push(h("p", { class: "note", "data-testid": "moderated" }, icon("shield"), `Part of this answer was withheld: ${kinds}.`));
    }
    if (extras.length) {
      notes.push(h("details", { class: "extras", "data-testid": "extras" },
        h("summary", {}, extras.length === 1 ? "1 step beside the answer" : `${extras.length} steps beside the answer`),
        ...extras.map((extra) => h("pre", { tabindex: 0 }, [extra.name ?? extra.role, extra.content].filter(Boolean).join("\n")))));
    }
    return notes;
  }

  #showFoot() {
    const { turn } = this;
    if (this.#foot.childElementCount === 0 && turn.text) {
      this.#foot.append(
        h("div", { class: "tools" },
          h("button", { type: "button", class: "tool", "aria-label": "Copy answer", title: "Copy answer", "data-testid": "copy", onclick: (event) => copyAnswer(event.currentTarget, turn.text) }, icon("copy")),
          ...(turn.messageId ? this.#feedback.buttons : [])),
        h("p", { class: "meta", "data-testid": "meta" }));
    }
    const meta = this.#foot.querySelector(".meta");
    if (meta) meta.textContent = metaWords(turn);
  }
}

/** @param {HTMLElement} button @param {string} text */
async function copyAnswer(button, text) {
  await copyText(text);
  button.replaceChildren(icon("check"));
  announce("Copied.");
  setTimeout(() => button.replaceChildren(icon("copy")), 1500);
}

/** @param {Turn} turn @returns {string} such as "12 tokens in · 34 out · first words after 0.31 s" */
function metaWords({ usage, firstText_s }) {
  const parts = [];
  if (usage && (usage.prompt_tokens ?? usage.completion_tokens ?? null) !== null) {
    const about = usage.source === "estimated" ? "about " : "";
    parts.push(`${about}${count(usage.prompt_tokens)} tokens in`, `${count(usage.completion_tokens)} out`);
  }
  if (firstText_s > 0) parts.push(`first words after ${firstText_s < 10 ? firstText_s.toFixed(2) : firstText_s.toFixed(0)} s`);
  return parts.join(" · ");
}

/** @param {number | null | undefined} n */
const count = (n) => (n ?? 0).toLocaleString("en");

/** @param {{position?: number, wait_s?: number} | null} queue */
function queueWords(queue) {
  const wait = queue?.wait_s ? `, about ${Math.ceil(queue.wait_s)} s` : "";
  return queue?.position ? `Waiting in line, ${queue.position} ahead${wait}` : `Waiting in line${wait}`;
}

/** @param {number} wait_s */
const waitWords = (wait_s) => (wait_s > 0 ? ` Try again in ${Math.ceil(wait_s)} s.` : "");
