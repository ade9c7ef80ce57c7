/** Says of when figures are, and reads them again. */
import { button, h } from "./dom.js";
import * as numbers from "./numbers.js";

/** @param {import("./figures.js").Figures} figures @param {string} [more] to be known of them */
export function sinceStart(figures, more = "") {
  const { starts } = figures;
  if (!starts.length) return h("p", { class: "note" }, "No worker told its metrics within a second; those that did are missing here.");
  const several = starts.length > 1 ? ` of ${starts.length} workers, the first one` : "";
  return h("p", { class: "note", "data-testid": "since" },
    `Counted by this gateway since the start${several} at `, h("time", { title: numbers.exactly(starts[0] * 1000) }, numbers.moment(starts[0] * 1000)),
    ` (${numbers.ZONE}). ${more} A worker that starts again begins at 0; Prometheus keeps what was before, and its dashboards have all gateways of a fleet.`);
}

/**
 * A button that reads again what is shown, and the first reading.
 * @param {HTMLElement} head @param {AbortSignal} signal of the view @param {() => Promise<void>} read
 */
export function refreshing(head, signal, read) {
  const again = button("Refresh", "small quiet", async () => {
    again.disabled = true;
    await read();
    if (!signal.aborted) again.disabled = false;
  }, { icon: "retry", testid: "refresh" });
  head.append(h("span", { class: "spacer" }), again);
  return read();
}
