/** How a question looks. */
import { button, h } from "./dom.js";
import { drawProblem } from "./notice.js";

/** @typedef {import("./conversation.js").Question} Question */

export class QuestionView {
  #note = h("div", { class: "question-note" });
  #drawn = "";

  /** @param {Question} question @param {import("./thread.js").Actions} actions */
  constructor(question, actions) {
    this.question = question;
    this.actions = actions;
    this.node = h("article", { class: "question", "data-testid": "question", "aria-label": "You" },
      h("div", { class: "bubble" }, question.text),
      this.#note);
  }

  update() {
    const { question, actions } = this;
    const { state, problem } = question;
    if (state === this.#drawn) return;
    this.#drawn = this.node.dataset.state = state;
    if (state !== "failed" || !problem) return this.#note.replaceChildren();
    const again = button("Send again", "small", () => actions.retry(question), { icon: "retry", testid: "retry" });
    const edit = button("Edit", "quiet small", () => actions.edit(question), { icon: "edit", testid: "edit" });
    this.#note.replaceChildren(drawProblem({ ...problem.json, retry_after_s: problem.retryAfter_s }, [again, edit], true));
    return undefined;
  }
}
