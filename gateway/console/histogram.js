/** Percentiles of histograms, as well as their buckets tell. */

/** @typedef {import("./exposition.js").Sample} Sample */

export class Histogram {
  /** @type {Map<number, number>} upper bound to the number of all up to it */
  #buckets = new Map();
  count = 0;
  sum = 0;

  /**
   * One histogram for each combination of labels, summed over everything else.
   * @param {Sample[]} samples @param {string} name @param {string[]} by
   * @returns {{labels: string[], histogram: Histogram}[]}
   */
  static read(samples, name, by) {
    /** @type {Map<string, {labels: string[], histogram: Histogram}>} */
    const found = new Map();
    for (const sample of samples) {
      if (!sample.name.startsWith(name)) continue;
      const part = sample.name.slice(name.length);
      if (part !== "_bucket" && part !== "_count" && part !== "_sum") continue;
      const labels = by.map((label) => sample.labels[label] ?? "");
      const key = labels.join("\0");
      const one = found.get(key) ?? { labels, histogram: new Histogram() };
      found.set(key, one);
      one.histogram.#add(part, sample);
    }
    return [...found.values()].filter(({ histogram }) => histogram.count > 0);
  }

  /** @param {string} part @param {Sample} sample */
  #add(part, { labels, value }) {
    if (part === "_count") this.count += value;
    else if (part === "_sum") this.sum += value;
    else {
      const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
      this.#buckets.set(bound, (this.#buckets.get(bound) ?? 0) + value);
    }
  }

  get mean() {
    return this.sum / this.count;
  }

  /**
   * Within the bucket that the quantile falls into all are taken for evenly spread, as Prometheus does.
   * @param {number} q 0 to 1
   * @returns {{value: number, above: boolean}} `above`: it lies beyond the last bound, which is the value
   */
  quantile(q) {
    const bounds = [...this.#buckets.keys()].sort((a, b) => a - b);
    const rank = q * this.count;
    let before = 0;
    let below = 0;
    for (const bound of bounds) {
      const upTo = this.#buckets.get(bound) ?? 0;
      if (upTo >= rank && upTo > 0) {
        if (bound === Infinity) return { value: below, above: true };
        const inside = upTo - before;
        return { value: inside ? below + (bound - below) * ((rank - before) / inside) : bound, above: false };
      }
      before = upTo;
      below = bound;
    }
    return { value: below, above: true };
  }
}
