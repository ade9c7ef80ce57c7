/** The admin token, for as long as this tab: never in an address, a cookie or a store that outlives the tab. */

const KEY = "hyperleap.admin-token";

export class Session {
  /** @returns {string} the token, or nothing */
  get token() {
    return sessionStorage.getItem(KEY) ?? "";
  }

  /** @param {string} token one that was let in */
  keep(token) {
    sessionStorage.setItem(KEY, token);
  }

  forget() {
    sessionStorage.removeItem(KEY);
  }
}
