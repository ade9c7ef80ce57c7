/** The sources of an answer. */
import { h, icon } from "./dom.js";

/** @typedef {import("./turn.js").Citation} Citation */

const EXCERPTS = 3;

/** @param {Citation[]} citations @returns {HTMLElement} */
export function drawCitations(citations) {
  const heading = citations.length === 1 ? "1 source" : `${citations.length} sources`;
  return h("section", { class: "citations", "data-testid": "citations", "aria-label": "Sources" },
    h("p", { class: "citations-title" }, icon("book"), heading),
    h("ol", {}, ...citations.map(drawCitation)));
}

/** @param {Citation} citation @param {number} i */
function drawCitation(citation, i) {
  const url = webAddress(citation.sourceUrl) ?? webAddress(citation.link);
  const name = citation.sourceName || (url ? url.hostname + url.pathname.replace(/\/$/, "") : citation.link) || "Unnamed source";
  const mark = h("span", { class: "citation-mark" }, String(citation.index ?? i + 1).replace(/^\[|\]$/g, ""));
  const host = url && citation.sourceName && h("span", { class: "citation-host" }, url.hostname);
  const excerpts = (citation.partitions ?? []).filter((part) => part.text).slice(0, EXCERPTS);
  if (!excerpts.length) {
    return h("li", { class: "citation-head", "data-testid": "citation" },
      mark, url ? link(url, name) : h("span", { class: "citation-name" }, name), host);
  }
  return h("li", { "data-testid": "citation" },
    h("details", {},
      h("summary", { class: "citation-head" }, mark, h("span", { class: "citation-name" }, name), host),
      ...excerpts.map((part) => h("blockquote", {}, part.text,
        typeof part.relevance === "number" && h("footer", {}, `Relevance ${Math.round(part.relevance * 100)}%`))),
      url && h("p", {}, link(url, "Open the source"))));
}

/** @param {URL} url @param {string} text */
function link(url, text) {
  return h("a", { class: "citation-link", href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, text);
}

/** @param {string | null | undefined} text @returns {URL | null} only what is safe to link to */
function webAddress(text) {
  try {
    const url = new URL(text ?? "");
    return url.protocol === "https:" || url.protocol === "http:" ? url : null;
  } catch {
    return null;
  }
}
