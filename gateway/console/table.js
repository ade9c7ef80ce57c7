/** Tables that scroll in a box of their own, with what names a row in sight; or, on a phone, whose rows become cards. */
import { button, copyText, h } from "./dom.js";
import { announce } from "./announcer.js";

/**
 * @typedef {string | number | Node | null} Cell
 * @typedef {{title: string, right?: boolean, head?: boolean, wide?: boolean}} Column `right`: figures; `head`: names its row;
 *   `wide`: takes what room there is
 */

/**
 * @param {string} caption what it tells; screen readers begin with it
 * @param {Column[]} columns @param {Cell[][]} rows
 * @param {{foot?: Cell[], cards?: boolean, testid?: string, keys?: string[]}} [more] `cards`: where there is no room each row is one;
 *   `keys` tells rows apart
 */
export function table(caption, columns, rows, { foot, cards = false, testid, keys } = {}) {
  /** @param {Cell[]} row @param {number} [number] */
  const line = (row, number) => h("tr", { role: "row", "data-key": keys && number !== undefined && keys[number] }, ...row.map((cell, i) => {
    const { title, right, head, wide } = columns[i];
    const look = `${right ? "right " : ""}${wide ? "wide" : ""}`.trim();
    const attributes = { role: head ? "rowheader" : "cell", scope: head && "row", class: look || null, "data-label": title };
    return h(head ? "th" : "td", attributes, typeof cell === "number" ? String(cell) : cell);
  }));
  return h("div", { class: "table-box", role: "region", tabindex: 0, "aria-label": caption },
    h("table", { class: cards && "cards", role: "table", "data-testid": testid },
      h("caption", { class: "hidden-visually" }, caption),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...columns.map(({ title, right }) =>
        h("th", { role: "columnheader", scope: "col", class: right && "right" }, title || h("span", { class: "hidden-visually" }, "Actions"))))),
      h("tbody", { role: "rowgroup" }, ...rows.map(line)),
      foot && h("tfoot", { role: "rowgroup" }, line(foot))));
}

/**
 * A button that copies rows as a spreadsheet takes them.
 * @param {string[]} titles @param {() => (string | number)[][]} rows plain figures, not as they are shown
 */
export function copyButton(titles, rows) {
  const made = button("Copy as CSV", "quiet small", async () => {
    try {
      await copyText([titles, ...rows()].map((row) => row.map(quoted).join(",")).join("\r\n"));
      made.textContent = "Copied";
    } catch { // the browser does not let the page
      made.textContent = "Not copied";
    }
    announce(`${made.textContent}.`);
    setTimeout(() => { made.textContent = "Copy as CSV"; }, 1500);
  }, { testid: "copy" });
  return made;
}

/** A cell that a spreadsheet takes for text, not for a formula. @param {string | number} cell */
function quoted(cell) {
  const text = typeof cell === "string" && /^[=+\-@\t\r]/.test(cell) ? `'${cell}` : String(cell);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
