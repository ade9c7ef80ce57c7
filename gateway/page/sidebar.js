/** The list of earlier conversations, the latest used first. On a narrow page it is a drawer. */
import { byId, h } from "./dom.js";
import { Problem, words } from "./problems.js";

/** @typedef {import("./record.js").ConversationRecord} ConversationRecord */

const TITLES = "hyperleap.titles";
const TITLES_KEPT = 300;
const TITLE_LENGTH = 60;

export class Sidebar {
  #api;
  #node = byId("sidebar");
  #list = byId("conversations");
  #more = byId("more");
  #toggle = byId("menu");
  #narrow = matchMedia("(max-width: 52rem)");
  /** @type {ConversationRecord[]} */
  #records = [];
  #cursor = "";
  #current = "";
  /** @type {Set<string>} */
  #busy = new Set();
  /** @type {Record<string, string>} */
  #titles = readTitles();
  /** @type {(id: string) => void} */
  onselect = () => {};

  /** @param {import("./api.js").Api} api */
  constructor(api) {
    this.#api = api;
    this.#more.addEventListener("click", () => this.load(true));
    this.#toggle.addEventListener("click", () => this.#show(this.#node.dataset.open !== "true"));
    byId("shade").addEventListener("click", () => this.#show(false));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || this.#node.dataset.open !== "true") return;
      event.preventDefault(); // this Escape closes the drawer; it does not stop an answer
      this.#show(false);
    }, true);
    this.#narrow.addEventListener("change", () => this.#show(false));
    this.#show(false);
  }

  /** @param {boolean} [further] the next page instead of the newest */
  async load(further = false) {
    try {
      const query = further && this.#cursor ? `?cursor=${encodeURIComponent(this.#cursor)}` : "";
      const page = await this.#api.json("GET", `/v1/conversations${query}`);
      const known = new Set((further ? this.#records : []).map((record) => record.id));
      this.#records = [...(further ? this.#records : []), ...page.data.filter((/** @type {ConversationRecord} */ r) => !known.has(r.id))];
      this.#cursor = page.next_cursor ?? "";
      this.#draw();
    } catch (error) {
      const { title } = words(Problem.from(error));
      this.#list.replaceChildren(h("p", { class: "list-note" }, `The list could not be loaded. ${title}.`));
    }
  }

  /** Puts a new conversation on top. @param {ConversationRecord} record */
  add(record) {
    this.#records = [record, ...this.#records.filter((other) => other.id !== record.id)];
    this.#draw();
  }

  /** Moves the conversation that was just used to the top. @param {string} id */
  touch(id) {
    const record = this.#records.find((other) => other.id === id);
    if (record && record !== this.#records[0]) this.add(record);
  }

  /** @param {string} id the conversation shown, or "" for a new one */
  select(id) {
    this.#current = id;
    this.#draw();
  }

  /** @param {string} id @param {boolean} busy */
  mark(id, busy) {
    if (this.#busy.has(id) === busy) return;
    if (busy) {
      this.#busy.add(id);
      this.touch(id);
    } else this.#busy.delete(id);
    this.#draw();
  }

  /** @param {{id: string, name?: string | null, opening?: string}} conversation @returns {string} a title, remembered on this device */
  titleOf({ id, name, opening }) {
    if (opening && id && !this.#titles[id]) {
      this.#titles[id] = shorten(opening);
      const kept = Object.entries(this.#titles).slice(-TITLES_KEPT);
      localStorage.setItem(TITLES, JSON.stringify(Object.fromEntries(kept)));
      this.#draw();
    }
    return name || this.#titles[id] || (opening ? shorten(opening) : "New chat");
  }

  close() {
    this.#show(false);
  }

  /** @param {boolean} open */
  #show(open) {
    const was = this.#node.dataset.open === "true";
    this.#node.dataset.open = String(open);
    this.#node.inert = this.#narrow.matches && !open;
    byId("main").inert = this.#narrow.matches && open;
    byId("shade").hidden = !(this.#narrow.matches && open);
    this.#toggle.setAttribute("aria-expanded", String(open));
    if (open) byId("new-chat").focus();
    else if (was && this.#narrow.matches) this.#toggle.focus();
  }

  #draw() {
    const items = this.#records.map((record) => h("li", {}, this.#item(record)));
    this.#list.replaceChildren(items.length
      ? h("ul", {}, ...items)
      : h("p", { class: "list-note" }, "Your conversations will be listed here."));
    this.#more.hidden = !this.#cursor;
  }

  /** @param {ConversationRecord} record */
  #item(record) {
    const title = this.titleOf(record);
    const busy = this.#busy.has(record.id);
    return h("a", {
      href: `#c=${record.id}`, class: "conversation", title, "data-testid": "conversation", "data-id": record.id,
      "aria-current": record.id === this.#current && "page",
      onclick: (/** @type {MouseEvent} */ event) => {
        if (event.metaKey || event.ctrlKey || event.shiftKey) return; // a new tab or window, as with any link
        event.preventDefault();
        this.#show(false);
        this.onselect(record.id);
      },
    },
      h("span", { class: "conversation-title" }, title),
      busy && h("span", { class: "busy", title: "Answering" }, h("span", { class: "hidden-visually" }, " (answering)")));
  }
}

/** @param {string} text */
function shorten(text) {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH - 1).trimEnd()}…` : line;
}

/** @returns {Record<string, string>} */
function readTitles() {
  try {
    return JSON.parse(localStorage.getItem(TITLES) ?? "{}");
  } catch {
    return {};
  }
}
