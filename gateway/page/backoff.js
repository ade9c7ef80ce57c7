/** Waits between attempts: exponential with full jitter, so that many pages do not come back in the same instant. */
export class Backoff {
  #attempt = 0;
  /** @type {(() => void) | null} */
  #wake = null;

  /** @param {number} first_ms @param {number} most_ms */
  constructor(first_ms = 500, most_ms = 15_000) {
    this.first_ms = first_ms;
    this.most_ms = most_ms;
  }

  /** How many waits there were since the last success. */
  get attempts() {
    return this.#attempt;
  }

  reset() {
    this.#attempt = 0;
  }

  /** Waits its turn; {@link hurry} ends the wait at once. @param {number} [least_ms] */
  async wait(least_ms = 0) {
    const ceiling_ms = Math.min(this.most_ms, this.first_ms * 2 ** this.#attempt++);
    const delay_ms = Math.max(least_ms, ceiling_ms * (0.3 + 0.7 * Math.random()));
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, delay_ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve(undefined);
      };
    });
    this.#wake = null;
  }

  /** Ends a wait: the network is back, or the page is looked at again. */
  hurry() {
    this.#wake?.();
  }
}
