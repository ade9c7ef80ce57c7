/** A tenant's table as JSON, with what is wrong said at the line where it is. */
import { h } from "./dom.js";
import { lineOf } from "./places.js";
import { Problem } from "./problem.js";

let editors = 0;

export class Editor {
  #area;
  #problem;
  #save;

  /** @param {unknown} table @param {string} go what the button says @param {(table: unknown) => Promise<unknown>} save */
  constructor(table, go, save) {
    const id = `editor-${++editors}`;
    const text = JSON.stringify(table, null, 2);
    this.#save = save;
    this.#problem = h("p", { id: `${id}-problem`, class: "field-problem", role: "alert", hidden: true, "data-testid": "editor-problem" });
    this.#area = h("textarea", {
      id, "data-testid": "editor", class: "editor", rows: Math.min(28, text.split("\n").length + 1), spellcheck: "false", autocapitalize: "off", wrap: "off",
      "aria-label": "The tenant's table as JSON", "aria-describedby": `${id}-problem`,
    });
    this.#area.value = text;
    this.node = h("form", {
      class: "editor-form", onsubmit: (/** @type {SubmitEvent} */ event) => {
        event.preventDefault();
        void this.#send(/** @type {HTMLButtonElement} */ (event.submitter));
      },
    }, this.#area, this.#problem, h("div", { class: "form-actions" }, h("button", { type: "submit", class: "button primary small", "data-testid": "save" }, go)));
  }

  /** @param {HTMLButtonElement} pressed */
  async #send(pressed) {
    this.#problem.hidden = true;
    this.#area.removeAttribute("aria-invalid");
    let table;
    try {
      table = JSON.parse(this.#area.value);
    } catch (error) {
      return this.#say(`This is no JSON: ${/** @type {Error} */ (error).message}`, placeOf(/** @type {Error} */ (error), this.#area.value));
    }
    pressed.disabled = true;
    try {
      await this.#save(table);
    } catch (error) {
      const problem = Problem.from(error);
      const line = problem.field ? lineOf(this.#area.value, problem.field) : 0;
      const where = problem.field ? `${problem.field}${line ? `, line ${line}` : ""}: ` : "";
      this.#say(`${where}${problem.text || problem.title}`, line);
    } finally {
      pressed.disabled = false;
    }
    return undefined;
  }

  /** @param {string} text @param {number} line 0: it is in none */
  #say(text, line) {
    this.#problem.textContent = text;
    this.#problem.hidden = false;
    this.#area.setAttribute("aria-invalid", "true");
    this.#area.focus();
    if (!line) return;
    const lines = this.#area.value.split("\n");
    const from = lines.slice(0, line - 1).reduce((sum, one) => sum + one.length + 1, 0);
    this.#area.setSelectionRange(from, from + lines[line - 1].length);
    this.#area.scrollTop = Math.max(0, (line - 4) * (this.#area.scrollHeight / lines.length));
  }
}

/** The line that a parser's message tells, if it does. @param {Error} error @param {string} text */
function placeOf(error, text) {
  const line = /line (\d+)/.exec(error.message);
  if (line) return Number(line[1]);
  const position = /position (\d+)/.exec(error.message);
  return position ? text.slice(0, Number(position[1])).split("\n").length : 0;
}
