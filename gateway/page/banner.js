/** One calm line above the composer about the connection, and the small sign of it in the header. */
import { button, byId, h } from "./dom.js";
import { words } from "./problems.js";

/** @typedef {import("./socket.js").LinkState} LinkState */
/** @typedef {import("./problems.js").Problem} Problem */

const PATIENCE_MS = 600; // shorter interruptions are not worth a word

/** @type {Record<LinkState | "offline", string>} */
const SIGNS = { connecting: "Connecting…", live: "Connected", lost: "Reconnecting…", closed: "Disconnected", offline: "Offline" };

export class Banner {
  #node = byId("banner");
  #sign = byId("status");
  #timer = 0;
  /** @type {LinkState} */
  #state = "connecting";
  #transport = "ws";
  /** @type {Problem | undefined} */
  #problem;
  /** Asked for another key. */
  onleave = () => {};

  constructor() {
    for (const name of ["online", "offline"]) addEventListener(name, () => this.#draw());
  }

  /** @param {LinkState} state @param {string} transport @param {Problem} [problem] */
  show(state, transport, problem) {
    if (state === this.#state && transport === this.#transport && problem?.code === this.#problem?.code) return;
    this.#state = state;
    this.#transport = transport;
    this.#problem = problem;
    this.#draw();
  }

  #draw() {
    const offline = !navigator.onLine && this.#state !== "closed";
    const state = offline ? "offline" : this.#state;
    this.#sign.dataset.state = state;
    this.#sign.dataset.transport = this.#transport;
    this.#sign.title = this.#transport === "ws" ? "Over a WebSocket" : "Over server-sent events";
    this.#sign.textContent = SIGNS[state];
    clearTimeout(this.#timer);
    const [tone, content] = this.#content(state);
    if (!content.length) return this.#put("", []);
    this.#timer = setTimeout(() => this.#put(tone, content), state === "lost" || state === "connecting" ? PATIENCE_MS : 0);
    return undefined;
  }

  /** @param {LinkState | "offline"} state @returns {[tone: string, content: (Node | string)[]]} */
  #content(state) {
    if (state === "offline") return ["calm", ["You are offline. The chat goes on where it was as soon as you are back."]];
    if (state === "lost") return ["calm", ["Connection lost – picking up where you were…"]];
    if (state === "connecting" && this.#problem) {
      const { title } = words(this.#problem);
      return ["calm", [`${title}. Trying again…`]];
    }
    if (state === "closed") {
      const { title, text } = words(this.#problem ?? {});
      const says = h("span", {}, h("strong", {}, `${title}. `), text);
      return ["grave", [says, button("Use another key", "small", () => this.onleave())]];
    }
    return ["", []];
  }

  /** @param {string} tone @param {(Node | string)[]} content */
  #put(tone, content) {
    this.#node.dataset.tone = tone;
    this.#node.hidden = !content.length;
    this.#node.replaceChildren(...content);
  }
}
