/**
 * Shows the view that the address names, `#/<room>[/<name>][?<choices>]`. A view draws itself on a {@link Stage} and
 * stops all it does when the stage's signal fires.
 */
import { byId, h } from "./dom.js";

/**
 * @typedef {object} Stage
 * @property {import("./api.js").Api} api
 * @property {string} name what the address names in the room, or nothing
 * @property {URLSearchParams} choices as the address has them
 * @property {(choices: Record<string, string>) => void} choose puts choices into the address, and so into the tab's history
 * @property {(choices: Record<string, string>) => string} address of this view with other choices
 * @property {Record<string, unknown>} kept by the view for itself, until another room is shown
 * @property {() => void} again shows the view anew, with nothing kept
 * @property {AbortSignal} signal fires when another view is shown
 * @property {HTMLElement} head right of the title: what one chooses by
 * @property {HTMLElement} body
 * @property {(title: string) => void} entitle
 */

const FIRST = "usage";

export class Router {
  #api;
  #rooms;
  #ending = new AbortController();
  #room = "";
  /** @type {Record<string, unknown>} */
  #kept = {};

  /**
   * @param {import("./api.js").Api} api
   * @param {Record<string, [title: string, show: (stage: Stage) => void | Promise<void>]>} rooms
   */
  constructor(api, rooms) {
    this.#api = api;
    this.#rooms = rooms;
    addEventListener("hashchange", () => {
      if (!byId("console").hidden) void this.#show(true);
    });
  }

  open() {
    byId("console").hidden = false;
    void this.#show(false);
  }

  close() {
    this.#ending.abort();
    this.#kept = {};
    this.#room = "";
    byId("view").replaceChildren();
  }

  /** @param {boolean} moved from another view, so that a screen reader is to be led here */
  async #show(moved) {
    const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
    const [asked, name = ""] = path.split("/", 2);
    const room = Object.hasOwn(this.#rooms, asked) ? asked : FIRST;
    const [title, show] = this.#rooms[room];
    const held = document.activeElement?.getAttribute("data-testid");
    this.#ending.abort();
    this.#ending = new AbortController();
    const { signal } = this.#ending;
    for (const link of document.querySelectorAll("[data-room]")) {
      if (link.getAttribute("data-room") === room) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    const heading = h("h1", { tabindex: -1, "data-testid": "title" }, title);
    const head = h("div", { class: "view-tools" });
    const body = h("div", { class: "view-body" });
    byId("view").replaceChildren(h("div", { class: "view-head" }, heading, head), body);
    const entitle = (/** @type {string} */ text) => {
      heading.textContent = text;
      document.title = `${text} · Gateway console`;
    };
    entitle(title);
    const choices = new URLSearchParams(query);
    const address = (/** @type {Record<string, string>} */ chosen) => {
      const all = new URLSearchParams(choices);
      for (const [key, value] of Object.entries(chosen)) {
        if (value) all.set(key, value);
        else all.delete(key);
      }
      return `#/${room}${name ? `/${name}` : ""}${all.size ? `?${all}` : ""}`;
    };
    const choose = (/** @type {Record<string, string>} */ chosen) => {
      location.hash = address(chosen);
    };
    const elsewhere = room !== this.#room;
    this.#room = room;
    if (elsewhere) this.#kept = {};
    const again = () => {
      this.#kept = {};
      void this.#show(true);
    };
    if (moved && elsewhere) {
      scrollTo(0, 0);
      heading.focus();
    }
    let decoded = name;
    try {
      decoded = decodeURIComponent(name);
    } catch {} // shown as it is, which is no name of anything
    await show({ api: this.#api, name: decoded, choices, choose, address, kept: this.#kept, again, signal, head, body, entitle });
    if (elsewhere || !held || signal.aborted || document.activeElement !== document.body) return;
    // What was pressed is another element now, in the same place: whoever works by keyboard stays there.
    /** @type {HTMLElement | null} */ (document.querySelector(`#view [data-testid="${CSS.escape(held)}"]`))?.focus({ preventScroll: true });
  }
}
