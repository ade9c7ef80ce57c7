/** Markdown to safe nodes. What a model writes is hostile input: raw HTML is shown as text, and all output passes DOMPurify. */
import { Marked } from "./vendor/marked.js";
import "./vendor/purify.js"; // sets globalThis.DOMPurify

const TAGS = [
  "p", "br", "hr", "strong", "em", "del", "code", "pre", "blockquote", "ul", "ol", "li", "a",
  "h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td",
];
const SAFE = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ["href", "title", "align", "start", "class"],
  ADD_URI_SAFE_ATTR: ["align", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

/** @type {Record<string, string>} */
const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escape = (/** @type {string} */ text) => text.replace(/[&<>"']/g, (character) => ENTITIES[character]);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: (/** @type {{text: string}} */ { text }) => escape(text),
    checkbox: (/** @type {{checked: boolean}} */ { checked }) => (checked ? "☑ " : "☐ "),
    // a picture would call another host and tell it who reads; a link lets the reader decide
    image: (/** @type {{href: string, text: string}} */ { href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
  },
});

/** Draws a growing text into a container, touching only the blocks that changed. */
export class MarkdownView {
  #container;
  /** @type {{raw: string, nodes: Node[]}[]} */
  #blocks = [];
  #told = 0;
  /** Called with the text of each block once nothing more can be added to it. @type {(text: string) => void} */
  onblock = () => {};

  /** @param {HTMLElement} container */
  constructor(container) {
    this.#container = container;
  }

  /** @param {string} text the whole text so far @param {boolean} ended nothing will follow */
  render(text, ended) {
    /** @type {{type: string, raw: string}[] & {links: object}} */
    const tokens = /** @type {any} */ (marked.lexer(text));
    const blocks = tokens.filter((token) => token.type !== "space" && token.type !== "def");
    // a definition further down may give meaning to a reference further up
    const again = ended && Object.keys(tokens.links).length > 0;
    let same = 0;
    if (!again) while (same < blocks.length && this.#blocks[same]?.raw === blocks[same].raw) same++;
    for (const old of this.#blocks.splice(same)) for (const node of old.nodes) node.parentNode?.removeChild(node);
    for (const token of blocks.slice(same)) {
      const nodes = draw(marked.parser([token]));
      this.#container.append(...nodes);
      this.#blocks.push({ raw: token.raw, nodes });
    }
    const finished = ended ? this.#blocks.length : this.#blocks.length - 1;
    for (; this.#told < finished; this.#told++) {
      this.onblock(this.#blocks[this.#told].nodes.map((node) => node.textContent ?? "").join(" ").trim());
    }
  }
}

/** @param {string} html @returns {Node[]} */
function draw(html) {
  /** @type {DocumentFragment} */
  const fragment = /** @type {any} */ (globalThis).DOMPurify.sanitize(html, SAFE);
  for (const link of fragment.querySelectorAll("a")) {
    if (!link.hasAttribute("href")) {
      link.replaceWith(...link.childNodes);
      continue;
    }
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const pre of fragment.querySelectorAll("pre")) frameCode(pre);
  for (const table of fragment.querySelectorAll("table")) {
    const frame = element("div", "table");
    frame.tabIndex = 0;
    frame.setAttribute("role", "region");
    frame.setAttribute("aria-label", "Table");
    table.replaceWith(frame);
    frame.append(table);
  }
  return [...fragment.childNodes];
}

/** Gives a code block its language and a copy button. @param {Element} pre */
function frameCode(pre) {
  const language = /^language-([\w+#.-]{1,24})$/.exec(pre.querySelector("code")?.className ?? "")?.[1] ?? "code";
  const frame = element("div", "code");
  const bar = element("div", "code-bar");
  const label = element("span", "");
  label.textContent = language;
  const copy = element("button", "code-copy");
  copy.setAttribute("type", "button");
  copy.setAttribute("data-copy", "code");
  copy.setAttribute("aria-label", `Copy this ${language === "code" ? "code" : `${language} code`}`);
  copy.textContent = "Copy";
  bar.append(label, copy);
  pre.replaceWith(frame);
  /** @type {HTMLElement} */ (pre).tabIndex = 0;
  frame.append(bar, pre);
}

/** @param {string} name @param {string} className */
function element(name, className) {
  const node = document.createElement(name);
  if (className) node.className = className;
  return node;
}
