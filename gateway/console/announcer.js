/** What a screen reader hears that sees nothing change. */
import { byId } from "./dom.js";

/** @param {string} text */
export function announce(text) {
  byId("said").textContent = text;
}
