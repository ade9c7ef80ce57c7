/**
 * Who the visitor is: a publishable key or a session token, and the short-lived token that every call carries.
 *
 * The key stays in localStorage, so that the page knows it next time; a token from a backend only in this tab.
 * Neither ever leaves in a URL: a fragment is not sent, and it is taken out of the address bar at once.
 */
import { Problem } from "./problems.js";

const KEY = "hyperleap.key";
const VISITOR = "hyperleap.visitor";
const TOKEN = "hyperleap.token";
const MARGIN_S = 60; // renew this long before the end, or at four fifths of a short life

/** @typedef {{token: string, expires_at: string, given?: boolean}} Held */

export class Session {
  /** @type {Held | null} */
  #held = read(sessionStorage, TOKEN);
  /** @type {Promise<string> | null} one renewal at a time */
  #minting = null;
  #timer = 0;
  /** Called with each renewed token. @type {(token: string) => void} */
  onrenewed = () => {};

  /**
   * Takes credentials and the conversation out of the address bar's fragment.
   * @returns {string | null} the conversation that the fragment names
   */
  static takeFragment() {
    const fragment = new URLSearchParams(location.hash.slice(1));
    const conversation = fragment.get("c");
    const key = fragment.get("key");
    const token = fragment.get("token");
    if (key || token) {
      forgetHeld();
      if (key) localStorage.setItem(KEY, key.trim());
      else write(sessionStorage, TOKEN, { token: token?.trim(), expires_at: expiryOf(token ?? ""), given: true });
      history.replaceState(null, "", location.pathname + location.search + (conversation ? `#c=${conversation}` : ""));
    }
    return conversation;
  }

  /** Whether there is anything to get in with. */
  get known() {
    return this.#held !== null || localStorage.getItem(KEY) !== null;
  }

  /**
   * Keeps what a person pasted.
   * @param {string} text @throws {Problem} `secret_key` or `not_a_key`
   */
  accept(text) {
    const value = text.trim();
    if (value.startsWith("hgs_")) throw new Problem({ code: "secret_key" });
    if (!/^hg[pt]_\S+$/.test(value)) throw new Problem({ code: "not_a_key" });
    this.forget();
    if (value.startsWith("hgp_")) localStorage.setItem(KEY, value);
    else this.#hold({ token: value, expires_at: expiryOf(value), given: true });
  }

  /** Forgets key and token; the visitor id stays, so that the same visitor finds their conversations again. */
  forget() {
    clearTimeout(this.#timer);
    this.#held = null;
    forgetHeld();
    localStorage.removeItem(KEY);
  }

  /** Drops a token that the gateway refused; a key mints a new one next time. */
  invalidate() {
    clearTimeout(this.#timer);
    this.#held = null;
    forgetHeld();
  }

  /** @returns {Promise<string>} a token good for a while yet @throws {Problem} when there is none to be had */
  async token() {
    const held = this.#held;
    if (held && (remaining_s(held) > 15 || (held.given && remaining_s(held) > 0))) {
      if (!this.#timer) this.#schedule(held);
      return held.token;
    }
    this.#minting ??= this.#mint().finally(() => (this.#minting = null));
    return this.#minting;
  }

  async #mint() {
    const key = localStorage.getItem(KEY);
    if (!key) throw new Problem({ code: "session_over", status: 401 });
    const visitor = localStorage.getItem(VISITOR);
    let response = await post(key, visitor ? { visitor_id: visitor } : {});
    if (!response.ok && visitor) {
      const problem = await Problem.fromResponse(response);
      if (problem.json.field !== "visitor_id") throw problem;
      localStorage.removeItem(VISITOR); // signed by another gateway, or too old: begin as a new visitor
      response = await post(key, {});
    }
    if (!response.ok) throw await Problem.fromResponse(response);
    const body = await response.json();
    if (body.visitor_id) localStorage.setItem(VISITOR, body.visitor_id);
    this.#hold({ token: body.token, expires_at: body.expires_at });
    return body.token;
  }

  /** @param {Held} held */
  #hold(held) {
    this.#held = held;
    write(sessionStorage, TOKEN, held);
    this.#schedule(held);
  }

  /** @param {Held} held */
  #schedule(held) {
    clearTimeout(this.#timer);
    if (held.given) return; // its backend mints the next one
    const life_s = remaining_s(held);
    const wait_s = Math.max(1, life_s - Math.min(MARGIN_S, life_s / 5));
    this.#timer = setTimeout(async () => {
      this.#held = null;
      try {
        this.onrenewed(await this.token());
      } catch {
        // the next call tries again and says what is wrong
      }
    }, Math.min(wait_s * 1000, 2 ** 31 - 1));
  }
}

/** @param {string} key @param {object} body */
async function post(key, body) {
  try {
    return await fetch("/v1/sessions", {
      method: "POST",
      headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
      body: JSON.stringify(body),
    });
  } catch (error) {
    throw Problem.from(error);
  }
}

/** @param {Held} held */
const remaining_s = (held) => (Date.parse(held.expires_at) - Date.now()) / 1000;

/** @param {string} token `hgt_` and a JWT; only its expiry is read, the gateway checks it */
function expiryOf(token) {
  try {
    const claims = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
    return new Date(claims.exp * 1000).toISOString();
  } catch {
    return new Date(Date.now() + 86_400_000).toISOString();
  }
}

/** @param {Storage} storage @param {string} name @returns {any} */
function read(storage, name) {
  try {
    return JSON.parse(storage.getItem(name) ?? "null");
  } catch {
    return null;
  }
}

/** @param {Storage} storage @param {string} name @param {unknown} value */
const write = (storage, name, value) => storage.setItem(name, JSON.stringify(value));
const forgetHeld = () => sessionStorage.removeItem(TOKEN);
