/** One tenant: what it is, its table to change, its keys, and what can be taken from it. */
import { announce } from "./announcer.js";
import { ask } from "./dialogs.js";
import { button, h } from "./dom.js";
import { Editor } from "./editor.js";
import { keysPanel } from "./keys.js";
import * as numbers from "./numbers.js";
import { fill } from "./states.js";
import { SOURCES } from "./tenants.js";

/** @typedef {import("./tenants.js").Tenant} Tenant */

const NEW = "+new"; // no tenant's name has such a sign
const TEMPLATE = { personas: { default: { persona_id: "" } }, origins: [], anonymous: false };
const NAME = /^[a-z0-9-]{1,32}$/;

/** @param {import("./router.js").Stage} stage */
export async function showTenant(stage) {
  const { api, body, name, signal, entitle } = stage;
  body.parentElement?.prepend(h("p", { class: "back" }, h("a", { href: "#/tenants" }, "← All tenants")));
  if (name === NEW) return showNew(stage);
  entitle(name);
  const path = `/tenants/${encodeURIComponent(name)}`;
  const draw = () => fill(body, signal, "Asking for the tenant…", async () => {
    /** @type {Tenant} */
    const tenant = await api.call("GET", path, { signal });
    return [
      facts(tenant),
      keysPanel(api, tenant.tenant, signal),
      settings(tenant, async (table) => {
        await api.call("PUT", path, { body: table, signal });
        announce("The tenant is changed; it holds on every worker within 2 s.");
        await draw();
      }),
      access(stage, tenant, draw),
    ];
  });
  return draw();
}

/** @param {import("./router.js").Stage} stage */
async function showNew({ api, body, entitle, signal }) {
  entitle("New tenant");
  const field = h("input", { id: "tenant-name", "data-testid": "tenant-name", autocomplete: "off", autocapitalize: "off", spellcheck: "false", maxlength: 32, "aria-describedby": "tenant-name-help tenant-name-problem" });
  const problem = h("p", { id: "tenant-name-problem", class: "field-problem", role: "alert", hidden: true });
  const editor = new Editor(TEMPLATE, "Make the tenant", async (table) => {
    const name = field.value.trim();
    problem.hidden = NAME.test(name);
    problem.textContent = "Use 1 to 32 small letters, digits and hyphens.";
    field.setAttribute("aria-invalid", String(!NAME.test(name)));
    if (!NAME.test(name)) return field.focus();
    const there = await api.call("GET", `/tenants/${name}`, { signal }).catch(() => null);
    if (there) {
      problem.textContent = "There is a tenant of this name; open it to change it.";
      problem.hidden = false;
      return field.focus();
    }
    await api.call("PUT", `/tenants/${name}`, { body: table, signal });
    announce("The tenant is made.");
    location.hash = `#/tenants/${name}`;
    return undefined;
  });
  body.append(h("section", { class: "panel" },
    h("div", { class: "panel-head" }, h("div", {}, h("h2", {}, "Name and table"), h("p", {}, "The table is what would stand below ", h("code", {}, "[tenants.<name>]"), " in TOML, as JSON."))),
    h("label", { for: "tenant-name" }, "Name"), field, h("p", { id: "tenant-name-help", class: "help" }, "Small letters, digits and hyphens. It is part of every key and cannot be changed."), problem,
    editor.node));
  field.focus();
}

/** @param {Tenant} tenant */
function facts(tenant) {
  const limits = Object.entries(tenant.limits).map(([scope, some]) =>
    h("div", {}, `${scope}: `, Object.entries(some).map(([name, value]) => `${name.replaceAll("_", " ")} ${numbers.count(value)}`).join(", ")));
  const pair = (/** @type {string} */ term, /** @type {(Node | string)[]} */ ...value) => [h("dt", {}, term), h("dd", {}, ...value)];
  const list = (/** @type {string[]} */ items) => (items.length ? items.join(", ") : "–");
  return h("section", { class: "panel", "data-testid": "tenant-facts" }, h("dl", { class: "facts" },
    ...pair("State", h("span", { class: `badge ${tenant.state}` }, tenant.state)),
    ...pair("Written in", SOURCES[tenant.source] ?? tenant.source),
    ...pair("Plan", tenant.plan ?? "–"),
    ...pair("Personas", list(tenant.personas)),
    ...(tenant.prompts.length ? pair("Prompts", list(tenant.prompts)) : []),
    ...pair("Origins", list(tenant.origins)),
    ...pair("Anonymous visitors", tenant.anonymous ? "let in" : "not let in"),
    ...pair("Doors", list(tenant.doors)),
    ...pair("Left alone, an answer", { detach: "goes on for a grace time", stop: "stops", drain: "goes on to its end" }[tenant.disconnect] ?? tenant.disconnect),
    ...(tenant.issuers.length ? pair("Issuers", list(tenant.issuers)) : []),
    ...pair("Limits", ...(limits.length ? limits : ["–"]))));
}

/** @param {Tenant} tenant @param {(table: unknown) => Promise<void>} save */
function settings(tenant, save) {
  const fixed = tenant.source !== "store";
  return h("section", { class: "panel", "data-testid": "tenant-settings" },
    h("div", { class: "panel-head" }, h("div", {}, h("h2", {}, "Settings"), h("p", {}, fixed
      ? `This tenant is written in the ${SOURCES[tenant.source] ?? tenant.source}: change it there.`
      : "Saved, it is in force on every worker within 2 s. What runs ends under the table that it began with."))),
    fixed ? h("pre", { class: "source", tabindex: 0, "aria-label": "The tenant's table" }, JSON.stringify(tenant.settings, null, 2)) : new Editor(tenant.settings, "Save", save).node);
}

/** @param {import("./router.js").Stage} stage @param {Tenant} tenant @param {() => Promise<void>} draw */
function access({ api, signal }, tenant, draw) {
  const path = `/tenants/${encodeURIComponent(tenant.tenant)}`;
  const revoked = tenant.state === "revoked";
  const user = h("input", { id: "user-id", "data-testid": "user-id", autocomplete: "off", spellcheck: "false", maxlength: 256 });
  const act = (/** @type {string} */ what, /** @type {string} */ said) => async () => {
    await api.call("POST", `${path}/${what}`, { signal });
    announce(said);
    await draw();
  };
  return h("section", { class: "panel", "data-testid": "tenant-access" },
    h("div", { class: "panel-head" }, h("div", {}, h("h2", {}, "Access"), h("p", {}, "What is taken back ends within 2 s on every worker: streams, sockets, turns."))),
    h("div", { class: "acts" },
      h("form", {
        class: "act", onsubmit: (/** @type {SubmitEvent} */ event) => {
          event.preventDefault();
          const user_id = user.value;
          if (!user_id) return user.focus();
          return void ask({
            title: "Take back what this user was given?", text: [`Sessions and tickets of ${user_id} open nothing any more; what is given out later works.`], go: "Take back",
            act: async () => {
              await api.call("POST", `${path}/users/revoke`, { body: { user_id }, signal });
              announce("Taken back.");
              user.value = "";
            },
          });
        },
      }, h("label", { for: "user-id" }, "A user's id"), h("div", { class: "field-row" }, user, h("button", { type: "submit", class: "button small" }, "Take back…"))),
      h("div", { class: "act" },
        h("p", {}, revoked ? "The tenant is shut out: nothing of it is let in." : "Shut the whole tenant out, keys included, until you let it in again."),
        revoked
          ? button("Let it in again…", "small", () => void ask({
            title: `Let ${tenant.tenant} in again?`, text: ["Its keys work again, and tokens that have not expired."], go: "Let it in", grave: false, act: act("restore", "The tenant is let in again."),
          }), { testid: "restore" })
          : button("Shut out…", "small grave", () => void ask({
            title: `Shut ${tenant.tenant} out?`, text: ["All its streams, sockets and turns end, and nothing of it is let in until you let it in again."], go: "Shut out", act: act("revoke", "The tenant is shut out."),
          }), { testid: "revoke" })),
      tenant.source === "store" && h("div", { class: "act" },
        h("p", {}, "Delete the tenant: its keys are revoked, and all that was issued opens nothing, now or ever."),
        button("Delete…", "small grave", () => void ask({
          title: `Delete ${tenant.tenant}?`, text: ["This cannot be undone. Its conversations, logs and usage stay until their time is over."], go: "Delete the tenant", typed: tenant.tenant,
          act: async () => {
            await api.call("DELETE", path, { signal });
            announce("The tenant is deleted.");
            location.hash = "#/tenants";
          },
        }), { testid: "delete" }))));
}

