/** Server-sent events without EventSource, which can send neither a token nor a cursor. WHATWG HTML section 9.2.6. */

/** @typedef {{id: string, event: string, data: string}} SseEvent */

/** Turns text that arrives in any pieces into events. Feed it with {@link push}; an unfinished event at the end is dropped. */
export class SseDecoder {
  #rest = "";
  #id = "";
  #event = "";
  /** @type {string[]} */
  #data = [];
  #begun = false;

  /** @param {string} text @returns {SseEvent[]} */
  push(text) {
    let input = this.#rest + text;
    if (!this.#begun && input.length > 0) {
      this.#begun = true;
      if (input.charCodeAt(0) === 0xfeff) input = input.slice(1);
    }
    /** @type {SseEvent[]} */
    const events = [];
    let start = 0;
    for (let i = 0; i < input.length; i++) {
      const code = input.charCodeAt(i);
      if (code !== 10 && code !== 13) continue;
      if (code === 13 && i + 1 === input.length) break; // perhaps the first half of CRLF: wait for more
      const event = this.#line(input.slice(start, i));
      if (event) events.push(event);
      if (code === 13 && input.charCodeAt(i + 1) === 10) i++;
      start = i + 1;
    }
    this.#rest = input.slice(start);
    return events;
  }

  /** @param {string} line @returns {SseEvent | null} */
  #line(line) {
    if (line === "") {
      const event = this.#data.length ? { id: this.#id, event: this.#event || "message", data: this.#data.join("\n") } : null;
      this.#event = "";
      this.#data = [];
      return event;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return null; // a comment, which keeps the connection alive
    const field = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#event = value;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    return null;
  }
}

/**
 * Reads a response to its end.
 * @param {Response} response @param {number} silence_ms a longer silence than this ends the reading
 * @returns {AsyncGenerator<SseEvent>} that throws when the connection breaks
 */
export async function* readEvents(response, silence_ms) {
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const decoder = new SseDecoder();
  try {
    for (;;) {
      const { done, value } = await within(reader.read(), silence_ms);
      if (done) return;
      yield* decoder.push(value);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** @template T @param {Promise<T>} promise @param {number} limit_ms @returns {Promise<T>} */
async function within(promise, limit_ms) {
  let timer = 0;
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new TypeError("the stream went silent")), limit_ms);
  });
  try {
    return await /** @type {Promise<T>} */ (Promise.race([promise, limit]));
  } finally {
    clearTimeout(timer);
  }
}
