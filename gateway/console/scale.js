/** Round numbers for an axis. */

/**
 * Ticks from 0 to at least `most`, at 1, 2, 2.5 or 5 of a power of ten.
 * @param {number} most @param {number} [about] how many steps there should be
 * @param {boolean} [whole] only whole numbers can be meant
 */
export function ticks(most, about = 4, whole = false) {
  if (!(most > 0)) return [0, 1];
  const rough = most / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * (1 - 1e-9)) ?? 10 * power;
  if (whole) step = Math.max(1, Math.ceil(step));
  const found = [];
  for (let i = 0; i === 0 || found[i - 1] < most * (1 - 1e-9); i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}
