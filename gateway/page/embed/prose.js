/**
 * A model's text as nodes: paragraphs, lists, quotes, headings, code, emphasis and links, as far as a bubble has room for Markdown.
 * Everything becomes text nodes of elements that are named here, so whatever a model writes, it can only be read.
 */
import { h } from "../dom.js";

const INLINE = new RegExp([
  /`([^`\n]+)`/, /\*\*(\S(?:[^\n]*?\S)?)\*\*/, /\*([^\s*](?:[^*\n]*[^\s*])?)\*/,
  /\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)/, /(https?:\/\/[^\s<>()]*[^\s<>().,;:!?'"*])/,
].map(({ source }) => source).join("|"), "g");
const BULLET = /^\s*[-*+]\s+/;
const NUMBER = /^\s*\d{1,9}[.)]\s+/;
const HEADING = /^#{1,6}\s+/;
const QUOTE = /^> ?/;
const FENCE = /^\s*```/;

/** @param {string} text @returns {string[]} its blocks: what stands between empty lines, and fenced code whole */
export function blocksOf(text) {
  /** @type {string[]} */
  const blocks = [];
  let fenced = false, joins = false;
  for (const line of text.split("\n")) {
    const fence = FENCE.test(line);
    if (!fenced && !line.trim()) joins = false;
    else if (joins && (fenced || !fence)) blocks[blocks.length - 1] += `\n${line}`;
    else blocks.push(line);
    if (fenced || line.trim()) joins = !(fence && fenced);
    if (fence) fenced = !fenced;
  }
  return blocks;
}

/** @param {string} block @returns {Node[]} */
export function draw(block) {
  const lines = block.split("\n");
  if (FENCE.test(lines[0])) {
    const end = lines.length > 1 && FENCE.test(lines[lines.length - 1]) ? -1 : undefined;
    return [h("pre", { tabindex: 0 }, h("code", {}, lines.slice(1, end).join("\n")))];
  }
  if (lines.every((line) => QUOTE.test(line))) {
    return [h("blockquote", {}, ...draw(lines.map((line) => line.replace(QUOTE, "")).join("\n")))];
  }
  /** @type {HTMLElement[]} */
  const nodes = [];
  for (const line of lines) {
    const kind = BULLET.test(line) ? "ul" : NUMBER.test(line) ? "ol" : HEADING.test(line) ? "h" : "p";
    const last = nodes[nodes.length - 1];
    if (kind === "h") nodes.push(h("p", { class: "heading" }, ...inline(line.replace(HEADING, ""))));
    else if (kind === "p") {
      if (last?.localName === "p" && !last.className) last.append("\n", ...inline(line));
      else if (last && last.localName !== "p" && /^\s/.test(line)) last.lastElementChild?.append("\n", ...inline(line.trim()));
      else nodes.push(h("p", {}, ...inline(line)));
    } else {
      if (last?.localName !== kind) nodes.push(h(kind, kind === "ol" ? { start: Number.parseInt(line, 10) } : {}));
      nodes[nodes.length - 1].append(h("li", {}, ...inline(line.replace(kind === "ul" ? BULLET : NUMBER, ""))));
    }
  }
  return nodes;
}

/** @param {string} text @returns {(Node | string)[]} */
function inline(text) {
  /** @type {(Node | string)[]} */
  const parts = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    const [whole, code, strong, em, label, href, bare] = match;
    parts.push(text.slice(at, match.index));
    if (code) parts.push(h("code", {}, code));
    else if (strong) parts.push(h("strong", {}, ...inline(strong)));
    else if (em) parts.push(h("em", {}, ...inline(em)));
    else parts.push(h("a", { href: href ?? bare, target: "_blank", rel: "noopener noreferrer nofollow" }, label ?? bare));
    at = match.index + whole.length;
  }
  parts.push(text.slice(at));
  return parts;
}

/** Draws a growing text, touching only the blocks that changed. */
export class Prose {
  #container;
  /** @type {{raw: string, nodes: Node[]}[]} */
  #blocks = [];

  /** @param {HTMLElement} container */
  constructor(container) {
    this.#container = container;
  }

  /** @param {string} text the whole text so far */
  show(text) {
    const blocks = blocksOf(text);
    let same = 0;
    while (same < blocks.length && this.#blocks[same]?.raw === blocks[same]) same++;
    for (const { nodes } of this.#blocks.splice(same)) for (const node of nodes) node.parentNode?.removeChild(node);
    for (const raw of blocks.slice(same)) {
      const nodes = draw(raw);
      this.#container.append(...nodes);
      this.#blocks.push({ raw, nodes });
    }
  }
}
