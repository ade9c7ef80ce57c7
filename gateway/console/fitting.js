/** Draws again whenever there is more or less room: text in a drawing keeps its size. */

/**
 * @param {HTMLElement} place @param {AbortSignal} signal of the view @param {(width: number) => void} draw called when the width is known
 *   and each time it changes
 */
export function fitting(place, signal, draw) {
  let drawn = 0;
  const observer = new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width < 40 || width === drawn) return;
    drawn = width;
    draw(width);
  });
  observer.observe(place);
  signal.addEventListener("abort", () => observer.disconnect());
}
