/** Where one writes: grows with the text, sends on Enter, and turns its button into Stop while an answer is written. */
import { announce } from "./announcer.js";
import { byId } from "./dom.js";
import { drawProblem } from "./notice.js";

const DRAFT = "hyperleap.draft";
const TALLEST_PX = 220;
const LONGEST = 32_000; // code points; as many as a gateway takes that was not told otherwise

export class Composer {
  /** @type {HTMLTextAreaElement} */
  #input = byId("message");
  /** @type {HTMLButtonElement} */
  #send = byId("send");
  /** @type {HTMLButtonElement} */
  #stop = byId("stop");
  #hint = byId("hint");
  #refusal = byId("refusal");
  #idleHint = this.#hint.textContent;
  #busy = false;
  /** @type {(text: string) => void} */
  onsend = () => {};
  onstop = () => {};

  constructor() {
    this.#input.addEventListener("input", () => this.#changed());
    this.#input.addEventListener("keydown", (event) => {
      // Enter that ends the composition of a character (Japanese, Chinese, …) is not meant for us
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      this.#submit();
    });
    byId("composer").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#stop.addEventListener("click", () => this.onstop());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#busy && !event.defaultPrevented && !event.isComposing) this.onstop();
    });
    this.text = sessionStorage.getItem(DRAFT) ?? "";
  }

  get text() {
    return this.#input.value;
  }

  set text(value) {
    this.#input.value = value;
    this.#changed();
  }

  focus() {
    if (matchMedia("(hover: hover)").matches) this.#input.focus({ preventScroll: true }); // no keyboard jumping up on a phone
  }

  /** @param {"idle" | "busy" | "stopping"} state */
  show(state) {
    const hadFocus = document.activeElement === this.#send || document.activeElement === this.#stop;
    this.#busy = state !== "idle";
    this.#send.hidden = this.#busy;
    this.#stop.hidden = !this.#busy;
    this.#stop.disabled = state === "stopping";
    this.#hint.textContent = state === "idle" ? this.#idleHint : state === "busy" ? "Answering. Esc stops." : "Stopping…";
    if (hadFocus) this.#input.focus({ preventScroll: true });
  }

  #submit() {
    if (this.#busy) return announce("An answer is still being written. Wait for it to end, or press Escape to stop it.");
    const text = this.text.trim();
    if (!text) return undefined;
    if (text.length > LONGEST && [...text].length > LONGEST) {
      this.#input.setAttribute("aria-invalid", "true");
      return this.#refusal.replaceChildren(drawProblem({ code: "message_too_long" }, [], true));
    }
    this.text = "";
    return this.onsend(text);
  }

  #changed() {
    this.#input.removeAttribute("aria-invalid");
    this.#refusal.replaceChildren();
    this.#send.disabled = !this.text.trim();
    if (this.text) sessionStorage.setItem(DRAFT, this.text);
    else sessionStorage.removeItem(DRAFT);
    this.#input.style.height = "auto";
    this.#input.style.height = `${Math.min(this.#input.scrollHeight, TALLEST_PX)}px`;
  }
}
