/** Commands on their way over the socket, and who waits for their answers. */
import { Problem } from "./problems.js";

/**
 * @typedef {{frame: Record<string, unknown>, keep: boolean, sent: boolean, timer: number,
 *            resolve: (data: any) => void, reject: (problem: Problem) => void}} Asked
 */

const ACK_MS = 20_000;

export class Commands {
  #put;
  #requests = 0;
  /** @type {Map<string, Asked>} */
  #asked = new Map();

  /** @param {(frame: object) => boolean} put sends a frame, and says whether there was a socket for it */
  constructor(put) {
    this.#put = put;
  }

  /**
   * @param {Record<string, unknown>} frame
   * @param {boolean} keep sent again on the next connection; must be safe to repeat
   * @returns {Promise<any>} what the gateway acknowledges with @throws {Problem}
   */
  ask(frame, keep) {
    return new Promise((resolve, reject) => {
      const id = `r${++this.#requests}`;
      const asked = { frame: { ...frame, request_id: id }, keep, sent: false, timer: 0, resolve, reject };
      this.#asked.set(id, asked);
      this.#send(id, asked);
      if (!asked.sent && !keep) this.#reject(id, asked, new Problem({ code: "network" }));
    });
  }

  /** @param {import("./socket.js").Frame} frame @returns {boolean} whether it answers a command that still waits */
  take({ request_id: id, event, data }) {
    const asked = id ? this.#asked.get(id) : undefined;
    if (!id || !asked || (event !== "ack" && event !== "error")) return false;
    if (event === "error") this.#reject(id, asked, new Problem(data ?? {}));
    else {
      this.#forget(id, asked);
      asked.resolve(data ?? {});
    }
    return true;
  }

  /** There is a new connection: sends what was kept for it. */
  resend() {
    for (const [id, asked] of this.#asked) this.#send(id, asked);
  }

  /** The connection is lost: commands that may not be repeated end with it. */
  drop() {
    for (const [id, asked] of this.#asked) {
      clearTimeout(asked.timer);
      asked.sent = false;
      if (!asked.keep) this.#reject(id, asked, new Problem({ code: "network" }));
    }
  }

  /** Ends those of a type that went out on this connection, for good. @param {string} type @param {Problem} problem */
  refuse(type, problem) {
    for (const [id, asked] of this.#asked) if (asked.sent && asked.frame.type === type) this.#reject(id, asked, problem);
  }

  /** Ends all of them. @param {Problem} problem */
  close(problem) {
    for (const [id, asked] of this.#asked) this.#reject(id, asked, problem);
  }

  /** @param {string} id @param {Asked} asked */
  #send(id, asked) {
    if (!this.#put(asked.frame)) return;
    clearTimeout(asked.timer);
    asked.sent = true;
    asked.timer = setTimeout(() => this.#reject(id, asked, new Problem({ code: "no_answer" })), ACK_MS);
  }

  /** @param {string} id @param {Asked} asked @param {Problem} problem */
  #reject(id, asked, problem) {
    this.#forget(id, asked);
    asked.reject(problem);
  }

  /** @param {string} id @param {Asked} asked */
  #forget(id, asked) {
    clearTimeout(asked.timer);
    this.#asked.delete(id);
  }
}
