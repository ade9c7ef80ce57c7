/** The turns that run just now on all workers, and a button that stops one. Nothing of what is said is here. */
import { announce } from "./announcer.js";
import { ask } from "./dialogs.js";
import { button, h } from "./dom.js";
import * as numbers from "./numbers.js";
import { empty, failed, loading } from "./states.js";
import { table } from "./table.js";

/**
 * @typedef {{tenant: string, turn_id: string, conversation_id: string, persona: string, user: string, state: string,
 *            started_at: string | null, position: number, readers: number | null, worker: string}} LiveTurn
 */

const EVERY_MS = 2000;
const MOST = 500;
const STATES = /** @type {Record<string, string>} */ ({
  queued: "In line for room with a vendor key", waiting: "Hyperleap has yet to answer", streaming: "Its answer is being written",
  stopping: "Will end at its worker's next step", lost: "Its worker is gone; another one takes it over",
});

/** @param {import("./router.js").Stage} stage */
export async function showLive({ api, body, head, choices, choose, signal }) {
  const only = choices.get("tenant") ?? "";
  let paused = false;
  let timer = 0;
  /** @type {Set<string>} */
  const asked = new Set();
  const count = h("p", { class: "note", "data-testid": "live-count" });
  const list = h("div", { class: "live-list" }, loading("Asking for the turns that run…"));
  const trouble = h("div");
  body.append(count, trouble, list);

  const pause = button("Pause", "small", () => {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    pause.setAttribute("aria-pressed", String(paused));
    clearTimeout(timer);
    if (!paused) void look();
  }, { testid: "pause" });
  pause.setAttribute("aria-pressed", "false");
  if (only) head.append(h("span", { class: "filter" }, "Tenant ", h("b", {}, only), button("Show all", "small quiet", () => choose({ tenant: "" }))));
  head.append(h("span", { class: "spacer" }), pause);

  /** @param {LiveTurn} turn */
  const stop = async (turn) => {
    const done = await ask({
      title: "Stop this turn?",
      text: [
        `${turn.tenant} / ${turn.persona}, begun ${numbers.since(turn.started_at)} ago.`,
        "Its answer ends where it is, and its readers are told that an administrator stopped it.",
      ],
      go: "Stop the turn",
      act: () => api.call("POST", `/tenants/${encodeURIComponent(turn.tenant)}/turns/${encodeURIComponent(turn.turn_id)}/stop`, {}),
    });
    if (!done) return;
    asked.add(turn.turn_id);
    announce("The turn is being stopped.");
    void look();
  };

  /** @param {LiveTurn} turn @returns {import("./table.js").Cell[]} */
  const row = (turn) => {
    const state = asked.has(turn.turn_id) && turn.state !== "lost" ? "stopping" : turn.state;
    const stopIt = button("Stop", "small grave", () => void stop(turn), { testid: "stop-turn" });
    stopIt.setAttribute("aria-label", `Stop the turn of ${turn.tenant} / ${turn.persona} that began ${numbers.since(turn.started_at)} ago`);
    stopIt.disabled = state === "stopping";
    return [
      h("span", { class: `badge ${state}`, title: STATES[state] ?? "" }, state),
      turn.tenant, turn.persona,
      h("span", { title: turn.started_at ? numbers.exactly(turn.started_at) : "" }, numbers.since(turn.started_at)),
      numbers.count(Math.max(0, turn.position - 2)),
      turn.readers === null ? "?" : numbers.count(turn.readers),
      id(turn.user), id(turn.conversation_id), id(turn.worker), stopIt,
    ];
  };

  const look = async () => {
    clearTimeout(timer);
    if (document.hidden) return; // nobody looks
    try {
      const { data, more } = await api.pages("/turns", { query: { tenant: only || undefined, limit: MOST }, signal }, MOST);
      if (signal.aborted) return;
      trouble.replaceChildren();
      for (const turn_id of asked) if (!data.some((turn) => turn.turn_id === turn_id)) asked.delete(turn_id);
      data.sort((a, b) => (a.started_at ?? "").localeCompare(b.started_at ?? "") || a.turn_id.localeCompare(b.turn_id));
      draw(data, more);
    } catch (error) {
      if (signal.aborted) return;
      trouble.replaceChildren(failed(error));
    }
    clearTimeout(timer); // two may have been under way
    if (!paused) timer = setTimeout(() => void look(), EVERY_MS);
  };

  /** @param {LiveTurn[]} turns @param {boolean} more */
  const draw = (turns, more) => {
    count.textContent = `${numbers.count(turns.length)} ${turns.length === 1 ? "turn runs" : "turns run"}${more ? `, and more than the ${MOST} that are shown` : ""}. Looked at ${numbers.clock(Date.now())} (${numbers.ZONE}), again every ${EVERY_MS / 1000} s.`;
    if (!turns.length) return list.replaceChildren(empty("Nothing runs just now", "Turns appear here while they are being answered."));
    const focused = list.querySelector("tr:focus-within")?.getAttribute("data-key");
    const scrolled = list.querySelector(".table-box")?.scrollLeft ?? 0;
    list.replaceChildren(table("Turns that run", [
      { title: "State" }, { title: "Tenant" }, { title: "Persona", head: true }, { title: "Since", right: true }, { title: "Characters", right: true }, { title: "Readers", right: true },
      { title: "User" }, { title: "Conversation" }, { title: "Worker" }, { title: "" },
    ], turns.map(row), { cards: true, testid: "live", keys: turns.map(({ turn_id }) => turn_id) }));
    const box = list.querySelector(".table-box");
    if (box) box.scrollLeft = scrolled;
    if (focused) /** @type {HTMLElement | null} */ (list.querySelector(`tr[data-key="${CSS.escape(focused)}"] button`))?.focus({ preventScroll: true });
    return undefined;
  };

  signal.addEventListener("abort", () => clearTimeout(timer));
  document.addEventListener("visibilitychange", () => { if (!paused) void look(); }, { signal });
  await look();
}

/** Ids are told apart by their beginning; the whole is there to copy. @param {string} whole */
function id(whole) {
  return h("code", { title: whole }, whole.slice(0, 8));
}
