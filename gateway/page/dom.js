/** Makes elements. Text goes in as text nodes only, so nothing here can turn words into markup. */

/** @typedef {Node | string | null | false | undefined} Child */

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} name
 * @param {Record<string, string | boolean | number | ((event: any) => void) | null | undefined>} [attributes]
 *   `class`, `data-…`, `aria-…` and other attributes; `onclick` and the like take functions; null and false leave out
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  for (const child of children) if (child !== null && child !== undefined && child !== false) node.append(child);
  return node;
}

/**
 * A button with a text on it, and perhaps a drawing before that.
 * @param {string} text @param {string} look classes beside `button` @param {() => void} onclick
 * @param {{icon?: string, testid?: string}} [more]
 */
export function button(text, look, onclick, { icon: drawing, testid } = {}) {
  const attributes = { type: "button", class: `button ${look}`, "data-testid": testid, onclick };
  return h("button", attributes, drawing && icon(drawing), text);
}

/**
 * A button that is only a drawing.
 * @param {string} drawing @param {string} label @param {string} testid @param {(event: any) => void} onclick
 */
export function tool(drawing, label, testid, onclick) {
  const attributes = { type: "button", class: "tool", "aria-label": label, title: label, "data-testid": testid, onclick };
  return h("button", attributes, icon(drawing));
}

/** The element of the page with this id, which is there. @param {string} id @returns {any} */
export function byId(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`no element #${id}`);
  return node;
}

/** 24 by 24 line drawings. @type {Record<string, string>} */
const PATHS = {
  copy: "M9 9h10v11H9zM5 15V4h10",
  check: "M5 12.5l4.5 4.5L19 7.5",
  up: "M7 20V10l4.6-7c1.6 0 2.5 1.1 2.2 2.7L13.2 9H19c1.3 0 2.2 1.2 1.9 2.4l-1.7 7c-.2.9-1 1.6-2 1.6zM3 10h4v10H3z",
  down: "M17 4v10l-4.6 7c-1.6 0-2.5-1.1-2.2-2.7l.6-3.3H5c-1.3 0-2.2-1.2-1.9-2.4l1.7-7C5 4.7 5.8 4 6.8 4zM21 14h-4V4h4z",
  retry: "M4 12a8 8 0 1 0 2.6-5.9M4 4v4.5h4.5",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  warning: "M12 4 2.8 19.5h18.4zM12 10v4.5M12 17v.2",
  stop: "M7 7h10v10H7z",
  chat: "M4 5h16v11H10l-4.5 4v-4H4z",
  close: "M6 6l12 12M18 6L6 18",
  send: "M12 19V5M6 11l6-6 6 6",
  shield: "M12 3l7.5 3v5.5c0 4.4-3 7.8-7.5 9.5-4.5-1.7-7.5-5.1-7.5-9.5V6z",
  book: "M6.5 3.5H19v17H6.5A2.5 2.5 0 0 1 4 18V6a2.5 2.5 0 0 1 2.5-2.5zM4 18a2.5 2.5 0 0 1 2.5-2.5H19",
};

/** @param {string} name one of PATHS @returns {SVGSVGElement} a drawing that screen readers skip */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** Puts a text on the clipboard, also where the page is not a secure context. @param {string} text */
export async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  const area = h("textarea", { class: "hidden-visually", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
