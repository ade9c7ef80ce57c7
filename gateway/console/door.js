/** Where one shows the admin token. */
import { byId } from "./dom.js";
import { Problem } from "./problem.js";

export class Door {
  #api;
  #session;
  #field = byId("token");
  #button = byId("enter");
  #problem = byId("door-problem");
  /** The token was let in. */
  onenter = () => {};

  /** @param {import("./api.js").Api} api @param {import("./session.js").Session} session */
  constructor(api, session) {
    this.#api = api;
    this.#session = session;
    byId("door-form").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      void this.#try();
    });
  }

  /** @param {Problem} [problem] why one stands here again */
  open(problem) {
    byId("console").hidden = true;
    byId("door").hidden = false;
    document.title = "Gateway console";
    if (problem) this.#say(problem);
    this.#field.focus();
  }

  async #try() {
    const token = this.#field.value.trim();
    if (!token) return this.#say(new Problem({ code: "credential_missing" }));
    if (!/^[!-~]+$/.test(token)) return this.#say(new Problem({ code: "credential_invalid" })); // no header could carry it
    this.#button.disabled = true;
    try {
      await this.#api.call("GET", "/turns", { query: { limit: 1 }, token });
    } catch (error) {
      const problem = Problem.from(error);
      if (problem.code !== "store_unavailable") return this.#say(problem); // that one told the token is right: it is looked at first
    } finally {
      this.#button.disabled = false;
    }
    this.#session.keep(token);
    this.#field.value = "";
    this.#problem.hidden = true;
    this.#field.removeAttribute("aria-invalid");
    byId("door").hidden = true;
    return this.onenter();
  }

  /** @param {Problem} problem */
  #say(problem) {
    this.#problem.textContent = `${problem.title}. ${problem.text}`;
    this.#problem.hidden = false;
    this.#field.setAttribute("aria-invalid", "true");
    this.#field.focus();
  }
}
