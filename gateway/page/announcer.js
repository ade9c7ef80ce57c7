/**
 * What a screen reader hears. The thread itself is not a live region: a streamed answer would be read letter by letter,
 * again and again. Instead, short states go to a status line, and each finished block of an answer is added once to a log.
 */
import { byId, h } from "./dom.js";

const KEPT = 40;

/** @param {string} text a state, such as "Answer complete." */
export function announce(text) {
  byId("status-line").textContent = text;
}

/** @param {string} text a finished paragraph, list, table or code block of the answer that is being written */
export function readOut(text) {
  if (!text) return;
  const log = byId("spoken-log");
  log.append(h("p", {}, text));
  while (log.childElementCount > KEPT) log.firstElementChild?.remove();
}
