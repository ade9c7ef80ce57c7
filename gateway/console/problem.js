/**
 * What went wrong, for an operator: what the gateway said of it (RFC 9457), with words of our own only where the gateway
 * said nothing, or could not know what is meant here.
 *
 * @typedef {{title?: string, status?: number, code?: string, detail?: string, field?: string, request_id?: string,
 *            earliest?: string}} ProblemJson
 */

/** @type {Record<string, [title: string, text: string]>} */
const WORDS = {
  network: ["The gateway cannot be reached", "It may be restarting, or the way to its internal port is down."],
  credential_invalid: ["This is not the admin token", "Compare it with the file that GATEWAY_ADMIN_TOKEN_FILE names; it is read when the gateway starts."],
  credential_missing: ["The admin token is needed", "Paste it to sign in."],
  draining: ["No worker serves just now", "They may all be starting or draining. Trying again soon will help."],
  worker_lost: ["The worker that was asked did not answer", "It may have done what was asked: look before you ask again."],
  store_unavailable: ["Redis does not answer", "What is asked for is kept there. The gateway goes on trying."],
};

export class Problem extends Error {
  /** @param {ProblemJson} json */
  constructor(json) {
    super(json.detail || json.title || json.code || "unknown problem");
    this.code = json.code ?? "unknown";
    this.status = json.status ?? 0;
    this.field = json.field ?? "";
    this.reference = json.request_id ?? "";
    this.earliest = json.earliest ?? ""; // from when on there is something to ask for
    const [title, text] = WORDS[this.code] ?? [json.title || "Something went wrong", json.detail || ""];
    this.title = title;
    this.text = text;
  }

  /** @param {Response} response a refused request; its body is read */
  static async fromResponse(response) {
    let json;
    try {
      json = await response.json();
    } catch {
      json = null;
    }
    if (typeof json !== "object" || json === null) json = { title: `The gateway answered ${response.status}` };
    return new Problem({ ...json, status: response.status });
  }

  /** @param {unknown} error whatever was thrown */
  static from(error) {
    if (error instanceof Problem) return error;
    if (error instanceof TypeError) return new Problem({ code: "network" });
    return new Problem({ title: "This page made a mistake", detail: String(error) });
  }
}
