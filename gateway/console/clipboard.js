/** Copies what stands in an element, also inside a dialog, and where the page is no secure context. */

/** @param {HTMLElement} node */
export async function copyFrom(node) {
  if (navigator.clipboard && isSecureContext) return navigator.clipboard.writeText(node.textContent ?? "");
  getSelection()?.selectAllChildren(node);
  document.execCommand("copy");
  return undefined;
}
