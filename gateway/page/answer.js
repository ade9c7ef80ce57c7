/** How an answer looks, from the first dot to its sources. */
import { announce, readOut } from "./announcer.js";
import { drawCitations } from "./citations.js";
import { button, copyText, h, icon, tool } from "./dom.js";
import { FeedbackView } from "./feedback.js";
import { MarkdownView } from "./markdown.js";
import { drawProblem } from "./notice.js";
import { finishedWords, stoppedWords, words } from "./problems.js";

/** @typedef {import("./turn.js").Turn} Turn */

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

  /** @param {Turn} turn @param {import("./thread.js").Actions} actions */
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.#feedback = new FeedbackView((feedback) => actions.rate(turn, feedback), this.#panel);
    this.#markdown.onblock = (text) => this.#wasLive && readOut(text);
    this.node = h("article", { class: "answer", "data-testid": "answer", "aria-label": "Assistant" },
      h("div", { class: "mark", "aria-hidden": "true" }),
      h("div", { class: "answer-body" },
        this.#waiting, this.#prose, this.#notes, this.#sources, this.#foot, this.#panel));
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
    const dots = h("span", { class: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i"));
    this.#waiting.replaceChildren(dots, text && h("span", {}, text));
  }

  /** How it ended, where that needs words. @param {boolean} last */
  #ending(last) {
    const { turn, actions } = this;
    if (turn.state === "stopped") {
      return [h("p", { class: "note", "data-testid": "stopped" }, icon("stop"), stoppedWords(turn.stopReason))];
    }
    if (turn.state === "failed") {
      const again = button("Ask again", "small", () => actions.askAgain(turn), { icon: "retry", testid: "ask-again" });
      return [drawProblem(turn.error ?? {}, last ? [again] : [], false)];
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
      const text = `Part of this answer was withheld: ${kinds}.`;
      notes.push(h("p", { class: "note", "data-testid": "moderated" }, icon("shield"), text));
    }
    if (extras.length) {
      const steps = extras.length === 1 ? "1 step beside the answer" : `${extras.length} steps beside the answer`;
      const texts = extras.map(({ name, role, content }) => [name ?? role, content].filter(Boolean).join("\n"));
      notes.push(h("details", { class: "extras", "data-testid": "extras" },
        h("summary", {}, steps),
        ...texts.map((text) => h("pre", { tabindex: 0 }, text))));
    }
    return notes;
  }

  #showFoot() {
    const { turn } = this;
    if (this.#foot.childElementCount === 0 && turn.text) {
      const copy = tool("copy", "Copy answer", "copy", (event) => copyAnswer(event.currentTarget, turn.text));
      this.#foot.append(
        h("div", { class: "tools" }, copy, ...(turn.messageId ? this.#feedback.buttons : [])),
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
  if (queue?.position === 1) return `Next in line${wait}`;
  return queue?.position ? `Waiting in line, place ${queue.position} or sooner${wait}` : `Waiting in line${wait}`;
}
