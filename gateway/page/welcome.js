/** The form for those who come without a key or token, or with one that was refused. */
import { byId } from "./dom.js";
import { Problem, words } from "./problems.js";

export class Welcome {
  #node = byId("welcome");
  /** @type {HTMLInputElement} */
  #input = byId("credential");
  #problem = byId("credential-problem");
  /** @type {(text: string) => void} given what was pasted; throws a Problem when it cannot be a credential */
  onenter = () => {};

  constructor() {
    byId("credential-form").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      try {
        this.onenter(this.#input.value);
        this.#input.value = "";
      } catch (error) {
        this.#say(Problem.from(error));
      }
    });
  }

  /** @param {Problem} [problem] why the one that was given does not do */
  show(problem) {
    byId("app").hidden = true;
    this.#node.hidden = false;
    this.#say(problem);
    this.#input.focus();
  }

  hide() {
    this.#node.hidden = true;
    byId("app").hidden = false;
  }

  /** @param {Problem} [problem] */
  #say(problem) {
    this.#problem.hidden = !problem;
    this.#input.setAttribute("aria-invalid", String(!!problem));
    if (!problem) return;
    const { title, text, reference } = words(problem);
    this.#problem.textContent = `${title}. ${text}${reference ? ` (Reference ${reference})` : ""}`;
  }
}
