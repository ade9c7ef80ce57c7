/** A tenant's keys: made, shown once, rotated, revoked. */
import { announce } from "./announcer.js";
import { ask, open } from "./dialogs.js";
import { copyFrom } from "./clipboard.js";
import { button, h } from "./dom.js";
import * as numbers from "./numbers.js";
import { empty, failed, fill } from "./states.js";
import { table } from "./table.js";

/**
 * @typedef {{key: string, id: string, tenant: string, kind: string, label: string, ending: string, state: string,
 *            created_at: string, expires_at: string | null, revoked_at: string | null, secret?: string}} Key
 */

const KINDS = /** @type {Record<string, string>} */ ({
  secret: "Secret: for a backend, mints sessions for its users", publishable: "Publishable: for pages of listed origins, anonymous", app: "App: for native apps, anonymous",
});
const LIVES = /** @type {Record<string, string>} */ ({ "": "No end", 2592000: "30 days", 7776000: "90 days", 31536000: "1 year" });
const OVERLAPS = /** @type {Record<string, string>} */ ({ 0: "It ends at once", 3600: "1 hour", 86400: "1 day", 604800: "7 days" });

/** @param {import("./api.js").Api} api @param {string} tenant @param {AbortSignal} signal */
export function keysPanel(api, tenant, signal) {
  const path = `/tenants/${encodeURIComponent(tenant)}/keys`;
  const list = h("div");
  const draw = () => fill(list, signal, "Asking for the keys…", async () => {
    /** @type {Key[]} */
    const keys = (await api.call("GET", path, { signal })).data;
    keys.sort((a, b) => Number(b.state === "active") - Number(a.state === "active") || b.created_at.localeCompare(a.created_at));
    if (!keys.length) return [empty("No key yet", "Without one nobody can open a session.")];
    return [table(`Keys of ${tenant}`, [
      { title: "Label", head: true }, { title: "Key" }, { title: "Kind" }, { title: "State" }, { title: "Made" }, { title: "Ends" }, { title: "" },
    ], keys.map((key) => [
      key.label, h("code", {}, `${key.key}…${key.ending}`), key.kind, h("span", { class: `badge ${key.state}` }, key.state),
      at(key.created_at), key.revoked_at ? at(key.revoked_at) : key.expires_at ? at(key.expires_at) : "never",
      key.state === "active" ? h("div", { class: "row-actions" }, rotate(key), revoke(key)) : null,
    ]), { cards: true, testid: "keys" })];
  });

  /** @param {Key} key */
  const revoke = (key) => {
    const made = button("Revoke", "small grave", async () => {
      if (await ask({
        title: `Revoke ${key.label}?`, text: ["The key and every session that it opened end within 2 s."], go: "Revoke the key",
        act: () => api.call("DELETE", `${path}/${encodeURIComponent(key.id)}`, { signal }),
      })) {
        announce("The key is revoked.");
        void draw();
      }
    }, { testid: "revoke-key" });
    made.setAttribute("aria-label", `Revoke the key ${key.label}`);
    return made;
  };

  /** @param {Key} key */
  const rotate = (key) => {
    const made = button("Rotate", "small", async () => {
      const overlap = select("overlap", OVERLAPS, "86400");
      await form(`Rotate ${key.label}`, "Make the new key", [
        h("p", {}, "A key of the same kind, label and length of life is made in its place."),
        h("label", { for: "overlap" }, "The old key works on for"), overlap,
      ], () => api.call("POST", `${path}/${encodeURIComponent(key.id)}/rotate`, { body: { overlap_s: Number(overlap.value) }, signal }));
      void draw();
    }, { testid: "rotate-key" });
    made.setAttribute("aria-label", `Rotate the key ${key.label}`);
    return made;
  };

  const create = button("New key", "small", async () => {
    const label = h("input", { id: "key-label", "data-testid": "key-label", autocomplete: "off", required: true, maxlength: 64 });
    const kind = select("key-kind", KINDS, "secret");
    const life = select("key-life", LIVES, "");
    await form("New key", "Make the key", [
      h("label", { for: "key-label" }, "Label"), label, h("label", { for: "key-kind" }, "Kind"), kind, h("label", { for: "key-life" }, "Ends after"), life,
    ], () => api.call("POST", path, { body: { label: label.value, kind: kind.value, ...(life.value ? { ttl_s: Number(life.value) } : {}) }, signal }));
    void draw();
  }, { testid: "new-key" });

  void draw();
  return h("section", { class: "panel", "data-testid": "tenant-keys" },
    h("div", { class: "panel-head" }, h("div", {}, h("h2", {}, "Keys"), h("p", {}, "A key is shown once, when it is made. Those that ended stay listed for 30 days.")), create), list);
}

/** @param {string} when */
const at = (when) => h("time", { datetime: when, title: numbers.exactly(when) }, numbers.date(when));

/** @param {string} id @param {Record<string, string>} options @param {string} chosen */
function select(id, options, chosen) {
  const made = h("select", { id, "data-testid": id }, ...Object.entries(options).map(([value, words]) => h("option", { value }, words)));
  made.value = chosen;
  return made;
}

/**
 * A dialog that makes a key and then shows it.
 * @param {string} title @param {string} go @param {Node[]} fields @param {() => Promise<Key>} make
 */
function form(title, go, fields, make) {
  return open(title, (close) => {
    const trouble = h("div", { class: "dialog-trouble" });
    const doit = h("button", { type: "submit", class: "button primary", "data-testid": "do" }, go);
    const content = h("form", {
      onsubmit: async (/** @type {SubmitEvent} */ event) => {
        event.preventDefault();
        doit.disabled = true;
        try {
          const { secret = "" } = await make();
          content.replaceWith(shown(secret, close));
        } catch (error) {
          trouble.replaceChildren(failed(error));
          doit.disabled = false;
        }
      },
    }, ...fields, trouble, h("div", { class: "dialog-actions" }, button("Cancel", "quiet", close, { testid: "cancel" }), doit));
    return content;
  });
}

/** @param {string} secret @param {() => void} close */
function shown(secret, close) {
  const key = h("code", { class: "secret", "data-testid": "secret", tabindex: 0 }, secret);
  const copy = button("Copy", "", async () => {
    await copyFrom(key);
    copy.textContent = "Copied";
    announce("The key is copied.");
  }, { testid: "copy-key" });
  const node = h("div", { class: "secret-shown" },
    h("p", {}, "This is the key. It is shown only now: keep it where secrets are kept."),
    key,
    h("div", { class: "dialog-actions" }, copy, button("I have it", "primary", close, { testid: "close" })));
  queueMicrotask(() => copy.focus());
  return node;
}
