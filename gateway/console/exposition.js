/**
 * Reads the Prometheus text format. With several workers each series comes once a worker, labelled `worker`: sums are
 * the reader's.
 *
 * @typedef {{name: string, labels: Record<string, string>, value: number}} Sample
 */

const ESCAPES = /** @type {Record<string, string>} */ ({ n: "\n", "\\": "\\", '"': '"' });

/**
 * @param {string} text a scrape
 * @param {(name: string) => boolean} wanted whether the samples of a name are needed
 * @returns {Sample[]}
 */
export function readSamples(text, wanted) {
  const samples = [];
  for (let start = 0, end = 0; start < text.length; start = end + 1) {
    end = text.indexOf("\n", start);
    if (end < 0) end = text.length;
    if (end === start || text[start] === "#") continue;
    const line = text.slice(start, end);
    const brace = line.indexOf("{");
    const space = line.indexOf(" ");
    const bare = brace < 0 || brace > space;
    const name = line.slice(0, bare ? space : brace);
    if (!wanted(name)) continue;
    /** @type {Record<string, string>} */
    const labels = {};
    const at = bare ? space : readLabels(line, brace + 1, labels);
    samples.push({ name, labels, value: Number.parseFloat(line.slice(at + 1)) });
  }
  return samples;
}

/**
 * Reads `name="value",…}`; a value may hold anything, its quotes and backslashes escaped.
 * @param {string} line @param {number} from @param {Record<string, string>} labels to put them into @returns {number} where the brace is
 */
function readLabels(line, from, labels) {
  let at = from;
  while (line[at] !== "}" && at < line.length) {
    const open = line.indexOf('="', at);
    if (open < 0) break;
    let close = line.indexOf('"', open + 2);
    while (close > 0 && escaped(line, close)) close = line.indexOf('"', close + 1);
    if (close < 0) break;
    const value = line.slice(open + 2, close);
    labels[line.slice(at, open)] = value.includes("\\") ? value.replace(/\\(.)/g, (_, sign) => ESCAPES[sign] ?? sign) : value;
    at = line[close + 1] === "," ? close + 2 : close + 1;
  }
  return at;
}

/** Whether an odd number of backslashes stands before a place. @param {string} line @param {number} at */
function escaped(line, at) {
  let before = at;
  while (line[before - 1] === "\\") before--;
  return (at - before) % 2 === 1;
}

/**
 * Sums by some labels, over workers and whatever else is told apart.
 * @param {Sample[]} samples @param {string} name @param {string[]} by
 * @returns {{labels: string[], value: number}[]} in the order in which they first come
 */
export function sumsBy(samples, name, by) {
  /** @type {Map<string, {labels: string[], value: number}>} */
  const sums = new Map();
  for (const sample of samples) {
    if (sample.name !== name) continue;
    const labels = by.map((label) => sample.labels[label] ?? "");
    const key = labels.join("\0");
    const sum = sums.get(key);
    if (sum) sum.value += sample.value;
    else sums.set(key, { labels, value: sample.value });
  }
  return [...sums.values()];
}
