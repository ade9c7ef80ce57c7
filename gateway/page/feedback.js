/** Thumbs up or down for an answer, with a comment if one has something to say. */
import { announce } from "./announcer.js";
import { button, h, tool } from "./dom.js";
import { Problem, words } from "./problems.js";

/** @typedef {import("./turn.js").Feedback} Feedback */

const GOOD = 10;
const BAD = -10;
const TAGS = { good: ["accurate", "clear", "helpful"], bad: ["incorrect", "unclear", "incomplete", "unhelpful"] };

/**
 * Two buttons and, once one was pressed, a small form. A thumb alone is already sent; the form adds to it.
 */
export class FeedbackView {
  #save;
  #up;
  #down;
  #panel;
  /** @type {Feedback | null} */
  #given = null;

  /** @param {(feedback: Feedback) => Promise<void>} save @param {HTMLElement} panel where the form and the comment go */
  constructor(save, panel) {
    this.#save = save;
    this.#panel = panel;
    this.#up = tool("up", "Good answer", "thumb-up", () => this.#rate(GOOD));
    this.#down = tool("down", "Bad answer", "thumb-down", () => this.#rate(BAD));
    this.#press(0);
  }

  get buttons() {
    return [this.#up, this.#down];
  }

  /** @param {Feedback | null} feedback as the gateway has it */
  show(feedback) {
    if (!feedback || this.#given) return;
    this.#given = feedback;
    this.#press(feedback.score);
    if (feedback.comments) this.#showComment(feedback);
  }

  /** @param {number} score */
  #press(score) {
    this.#up.setAttribute("aria-pressed", String(score > 0));
    this.#down.setAttribute("aria-pressed", String(score < 0));
  }

  /** @param {number} score */
  async #rate(score) {
    const before = this.#given;
    const same = before !== null && before.score > 0 === score > 0;
    const feedback = same ? before : { score, comments: before?.comments ?? "", tags: [] };
    this.#given = feedback;
    this.#press(score);
    this.#openForm(feedback);
    if (same) return;
    try {
      await this.#save(feedback);
      announce(score > 0 ? "Marked as a good answer." : "Marked as a bad answer.");
    } catch (error) {
      this.#given = before;
      this.#press(before?.score ?? 0);
      this.#say(error);
    }
  }

  /** @param {Feedback} feedback */
  #openForm(feedback) {
    const good = feedback.score > 0;
    const chosen = new Set(feedback.tags ?? []);
    const comment = h("textarea", {
      rows: 2, maxlength: 2000, "aria-label": "Comment", "data-testid": "feedback-comment",
      placeholder: good ? "What was good? (optional)" : "What was wrong or missing? (optional)",
    });
    comment.value = feedback.comments ?? "";
    const tags = TAGS[good ? "good" : "bad"].map((tag) => h("button", {
      type: "button", class: "chip", "aria-pressed": String(chosen.has(tag)),
      onclick: ({ currentTarget }) => {
        if (!chosen.delete(tag)) chosen.add(tag);
        currentTarget.setAttribute("aria-pressed", String(chosen.has(tag)));
      },
    }, tag));
    const form = h("form", {
      class: "feedback-form", "aria-label": "Feedback on this answer",
      onsubmit: (/** @type {SubmitEvent} */ event) => {
        event.preventDefault();
        this.#send({ score: feedback.score, comments: comment.value.trim(), tags: [...chosen] });
      },
      onkeydown: (/** @type {KeyboardEvent} */ event) => {
        if (event.key !== "Escape") return;
        event.stopPropagation();
        this.#close();
      },
    },
      h("div", { class: "chips", role: "group", "aria-label": "What describes it" }, ...tags),
      comment,
      h("div", { class: "feedback-actions" },
        h("button", { type: "submit", class: "button primary small", "data-testid": "feedback-send" }, "Send feedback"),
        button("Not now", "quiet small", () => this.#close())));
    this.#panel.replaceChildren(form);
    comment.focus({ preventScroll: true });
    form.scrollIntoView({ block: "nearest" });
  }

  /** @param {Feedback} feedback */
  async #send(feedback) {
    try {
      await this.#save(feedback);
      this.#given = feedback;
      this.#close();
      announce("Feedback sent. Thank you.");
    } catch (error) {
      this.#say(error);
    }
  }

  #close() {
    this.#panel.replaceChildren();
    if (this.#given?.comments) this.#showComment(this.#given);
    (this.#given && this.#given.score < 0 ? this.#down : this.#up).focus({ preventScroll: true });
  }

  /** @param {Feedback} feedback */
  #showComment(feedback) {
    this.#panel.replaceChildren(h("p", { class: "feedback-given", "data-testid": "feedback-given" },
      h("span", {}, "Your comment: "), feedback.comments ?? ""));
  }

  /** @param {unknown} error */
  #say(error) {
    const { title, text } = words(Problem.from(error));
    this.#panel.querySelector(".feedback-problem")?.remove();
    this.#panel.append(h("p", { class: "feedback-problem", role: "alert" }, `Not sent. ${title}. ${text}`));
  }
}
