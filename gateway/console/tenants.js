/** All tenants, and those of the store that cannot be read. */
import { h } from "./dom.js";
import * as numbers from "./numbers.js";
import { empty, fill } from "./states.js";
import { table } from "./table.js";

/**
 * @typedef {{tenant: string, source: string, state: string, plan: string | null, personas: string[], prompts: string[],
 *            origins: string[], anonymous: boolean, doors: string[], limits: Record<string, Record<string, number>>,
 *            disconnect: string, issuers: string[], settings?: Record<string, unknown>}} Tenant
 */

export const SOURCES = /** @type {Record<string, string>} */ ({ settings: "settings", file: "tenants file", store: "store" });

/** @param {import("./router.js").Stage} stage */
export async function showTenants({ api, body, head, signal }) {
  head.append(h("span", { class: "spacer" }), h("a", { class: "button primary small", href: "#/tenants/+new", "data-testid": "new-tenant" }, "New tenant"));
  await fill(body, signal, "Asking for the tenants…", async () => {
    /** @type {{data: Tenant[], unreadable: Record<string, string>}} */
    const { data, unreadable } = await api.call("GET", "/tenants", { signal });
    const broken = Object.entries(unreadable);
    return [
      broken.length > 0 && h("div", { class: "problem", role: "alert" }, h("div", {},
        h("p", {}, h("strong", {}, "Rows of the store that cannot be read. "), "What was read of these tenants before holds."),
        h("ul", {}, ...broken.map(([name, field]) => h("li", {}, h("code", {}, name), " at ", h("code", {}, field || "its beginning")))))),
      data.length === 0
        ? empty("No tenant yet", "Make one here, or write it in the settings.")
        : table("Tenants", [
          { title: "Tenant", head: true }, { title: "State" }, { title: "Written in" }, { title: "Plan" }, { title: "Personas" }, { title: "Origins", right: true }, { title: "" },
        ], data.map((tenant) => [
          h("a", { href: `#/tenants/${encodeURIComponent(tenant.tenant)}` }, tenant.tenant),
          h("span", { class: `badge ${tenant.state}` }, tenant.state),
          SOURCES[tenant.source] ?? tenant.source, tenant.plan ?? "–",
          named([...tenant.personas, ...tenant.prompts]), numbers.count(tenant.origins.length),
          h("a", { href: `#/live?tenant=${encodeURIComponent(tenant.tenant)}` }, "Live turns"),
        ]), { cards: true, testid: "tenants" }),
    ];
  });
}

/** @param {string[]} names */
function named(names) {
  const most = 4;
  return h("span", { title: names.join(", ") }, names.length > most ? `${names.slice(0, most).join(", ")} and ${names.length - most} more` : names.join(", ") || "–");
}
