/** Puts the console together; nothing here knows how anything is done. */
import { Api } from "./api.js";
import { Door } from "./door.js";
import { byId } from "./dom.js";
import { Router } from "./router.js";
import { Session } from "./session.js";
import { showLatency } from "./latency.js";
import { showLive } from "./live.js";
import { showOutcomes } from "./outcomes.js";
import { showTenant } from "./tenant.js";
import { showTenants } from "./tenants.js";
import { showUsage } from "./usage.js";

const session = new Session();
const api = new Api(session);
const door = new Door(api, session);
const router = new Router(api, {
  usage: ["Usage", showUsage],
  latency: ["Latency", showLatency],
  outcomes: ["Outcomes", showOutcomes],
  live: ["Live turns", showLive],
  tenants: ["Tenants", (stage) => (stage.name ? showTenant(stage) : showTenants(stage))],
});

api.onrefused = (problem) => {
  session.forget();
  router.close();
  door.open(problem);
};
door.onenter = () => router.open();
byId("leave").addEventListener("click", () => {
  session.forget();
  location.reload(); // nothing that was shown stays in the tab
});

if (session.token) router.open();
else door.open();
