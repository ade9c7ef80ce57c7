/** The box that says in words what went wrong with a question or an answer. */
import { h, icon } from "./dom.js";
import { words } from "./problems.js";

/**
 * @param {import("./problems.js").ProblemJson} problem
 * @param {HTMLElement[]} buttons what can be done about it
 * @param {boolean} urgent whether a screen reader is to be interrupted for it
 */
export function drawProblem(problem, buttons, urgent) {
  const { title, text, reference } = words(problem);
  const wait_s = problem.retry_after_s ?? 0;
  return h("div", { class: "problem", role: urgent && "alert", "data-testid": "problem" },
    icon("warning"),
    h("div", {},
      h("p", {}, h("strong", {}, title, ". "), text, wait_s > 0 && ` Try again in ${Math.ceil(wait_s)} s.`),
      reference && h("p", { class: "reference" }, `Reference ${reference}`),
      buttons.length > 0 && h("div", { class: "problem-actions" }, ...buttons)));
}
