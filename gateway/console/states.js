/** What stands where numbers do not stand yet, do not stand at all, or could not be had. */
import { button, h, icon } from "./dom.js";
import { Problem } from "./problem.js";

/** @param {string} text what is waited for */
export const loading = (text) => h("p", { class: "state", role: "status", "data-testid": "loading" }, h("span", { class: "dots", "aria-hidden": "true" }), text);

/** @param {string} title @param {...(Node | string)} text */
export const empty = (title, ...text) => h("div", { class: "state empty", "data-testid": "empty" }, h("strong", {}, title), h("p", {}, ...text));

/**
 * @param {unknown} error whatever was thrown @param {() => void} [again] what may help
 */
export function failed(error, again) {
  const problem = Problem.from(error);
  return h("div", { class: "problem", role: "alert", "data-testid": "problem" },
    icon("warning"),
    h("div", {},
      h("p", {}, h("strong", {}, `${problem.title}. `), problem.text),
      problem.reference && h("p", { class: "reference" }, `Request ${problem.reference}`),
      again && button("Try again", "small", again)));
}

/**
 * Does something that takes time in a place of the page: what is waited for, then what came of it, or what went wrong.
 * @param {HTMLElement} place @param {AbortSignal} signal of the view @param {string} text while one waits
 * @param {() => Promise<(Node | string | null | false)[]>} make
 */
export async function fill(place, signal, text, make) {
  const waiting = loading(text);
  // What is there at once shows no word of waiting for it.
  const timer = setTimeout(() => { if (!place.childElementCount) place.append(waiting); }, 0);
  place.setAttribute("aria-busy", "true");
  try {
    const made = await make();
    if (!signal.aborted) place.replaceChildren(...made.filter((node) => node !== null && node !== false));
  } catch (error) {
    if (!signal.aborted) place.replaceChildren(failed(error, () => void fill(place, signal, text, make)));
  } finally {
    clearTimeout(timer);
    place.removeAttribute("aria-busy");
  }
}
