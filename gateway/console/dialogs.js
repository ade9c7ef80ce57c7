/** Asks before what cannot be undone. */
import { button, byId, h } from "./dom.js";
import { failed } from "./states.js";

/**
 * @typedef {object} Question
 * @property {string} title
 * @property {(Node | string)[]} text
 * @property {string} go what is done, on its button
 * @property {() => Promise<unknown>} act what is done; what it throws is shown in the dialog
 * @property {string} [typed] must be typed before
 * @property {boolean} [grave] destroys or ends something
 */

/** @param {Question} question @returns {Promise<boolean>} whether it was done */
export function ask({ title, text, go, act, typed, grave = true }) {
  const field = typed === undefined ? null : h("input", { id: "typed", autocomplete: "off", autocapitalize: "off", spellcheck: "false", "data-testid": "typed" });
  const doit = h("button", { type: "submit", class: `button ${grave ? "grave" : "primary"}`, disabled: typed !== undefined, "data-testid": "do" }, go);
  const trouble = h("div", { class: "dialog-trouble" });
  let done = false;
  field?.addEventListener("input", () => { doit.disabled = field.value !== typed; });
  return open(title, (close) => h("form", {
    onsubmit: async (/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      doit.disabled = true;
      try {
        await act();
        done = true;
        close();
      } catch (error) {
        trouble.replaceChildren(failed(error));
        doit.disabled = false;
      }
    },
  },
    ...text.map((part) => (typeof part === "string" ? h("p", {}, part) : part)),
    field && h("label", { for: "typed" }, "Type ", h("code", {}, typed ?? ""), " to go on"), field,
    trouble,
    h("div", { class: "dialog-actions" }, button("Cancel", "quiet", close, { testid: "cancel" }), doit))).then(() => done);
}

/**
 * Opens a dialog; resolves once it is closed, with the focus back where it was.
 * @param {string} title @param {(close: () => void) => Node} content
 * @returns {Promise<void>}
 */
export function open(title, content) {
  /** @type {HTMLDialogElement} */
  const dialog = byId("dialog");
  const before = document.activeElement;
  const heading = h("h2", { id: "dialog-title", tabindex: -1 }, title);
  dialog.setAttribute("aria-labelledby", "dialog-title");
  dialog.replaceChildren(heading, content(() => dialog.close()));
  dialog.showModal();
  if (!dialog.querySelector("input, select")) heading.focus(); // Enter must not do what was not read
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.replaceChildren(); // a key that was shown is nowhere any more
      if (before instanceof HTMLElement && before.isConnected) before.focus();
      resolve();
    }, { once: true });
  });
}
