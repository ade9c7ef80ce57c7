/**
 * What went wrong, in words: the one table from a code to what a person reads.
 *
 * The gateway answers errors as RFC 9457 `application/problem+json` with a stable `code`; the page adds a few codes of its
 * own (first block). A code that is not in the table falls back to the gateway's own `title` and `detail`.
 *
 * @typedef {{type?: string, title?: string, status?: number, code?: string, detail?: string, field?: string,
 *            request_id?: string, retryable?: boolean, retry_after_s?: number, vendor_status?: number | null}} ProblemJson
 */

/** A key may narrow a code by the vendor's status, `code:404`. @type {Record<string, [title: string, text: string]>} */
const WORDS = {
  // seen by the page itself
  offline: ["You are offline", "Your message is kept here. Send it again once you are connected."],
  network: ["The gateway cannot be reached", "It may be restarting, or the connection is down. Nothing you wrote is lost."],
  no_answer: ["The gateway did not answer in time", "Sending again is safe: the same message is never answered twice."],
  not_sent: ["This message may not have been sent", "The page was left before the gateway had it."],
  session_over: ["Your session has ended", "Open the chat again from where you came, or paste a new key or token."],
  secret_key: ["That is a secret key", "It belongs on a server, never in a page. Use a publishable key (hgp_…) or a session token (hgt_…)."],
  not_a_key: ["That does not look like a key", "A publishable key starts with hgp_, a session token with hgt_."],
  not_understood: ["The page and the gateway do not understand each other", "One of them may be newer than the other. Reload the page."],
  access_ended: ["Your access was withdrawn", "This key, user or tenant may no longer use the gateway. Ask whoever gave you the key."],
  ended_before: ["This answer is incomplete", "It broke off when it was written."],
  // who is asking
  credential_missing: ["A key is needed", "Paste a publishable key or a session token."],
  credential_invalid: ["This key or token was not accepted", "It may be mistyped, replaced or withdrawn. Paste a new one."],
  token_expired: ["Your session has ended", "Open the chat again from where you came, or paste a new key or token."],
  revoked: ["Your access was withdrawn", "This key, user or tenant may no longer use the gateway. Ask whoever gave you the key."],
  credential_used: ["This token was used already", "It opens one connection only. Open the chat again from where you came."],
  issuer_unavailable: ["Your sign-in cannot be checked just now", "The service that signed you in does not answer. Try again in a moment."],
  auth_timeout: ["Signing in took too long", "Reload the page to try again."],
  origin_not_allowed: ["This page may not use the gateway", "Its address is not among those that this key allows. Ask whoever runs the gateway to add it."],
  anonymous_disabled: ["This gateway does not take anonymous visitors", "Publishable keys are switched off here. Use a session token (hgt_…) from your application."],
  door_closed: ["This way in is closed", "Whoever runs the gateway has switched this kind of connection off for this application."],
  forbidden: ["You may not do this", "Your key or token does not allow it."],
  // what was asked
  not_found: ["This conversation is not here", "It may belong to another visitor or another key, or it was deleted."],
  headers_too_large: ["The request is too long", "The browser sends more along with it than the gateway takes. Clearing this site's cookies may help."],
  upgrade_required: ["A live connection was not let through", "A proxy on the way may not pass WebSockets on."],
  message_empty: ["The message is empty", "Write something first."],
  message_too_long: ["The message is too long", "Shorten it, or send it in parts."],
  body_too_large: ["The message is too long", "Shorten it, or send it in parts."],
  frame_too_large: ["The message is too long", "Shorten it, or send it in parts."],
  message_flagged: ["This message was not sent", "Moderation found something in it that is not allowed here. Put it in other words."],
  moderation_unavailable: ["This message cannot be checked just now", "It was not sent. Send it again in a moment."],
  persona_unknown: ["There is no such assistant", "The persona that this page asked for is not set up here, or not for your key."],
  prompt_unknown: ["There is no such prompt", "The prompt that was to be run is not set up here, or not for your key."],
  replacement_not_allowed: ["The page asked for something that is not allowed", "Reload the page."],
  unsupported_parameter: ["Hyperleap cannot do this", "The request asks for something that this assistant does not offer."],
  turn_active: ["An answer is still being written", "Wait for it to end, or stop it. Then send again."],
  rate_limited: ["That was a little fast", "You have reached the limit on messages for now."],
  commands_too_fast: ["That was a little fast", "Wait a moment, then try again."],
  subscriptions_exceeded: ["Too many conversations are open at once", "Close some tabs, or reload the page."],
  history_lost: ["This answer cannot be replayed", "It ended too long ago. What the gateway still knows of it is shown."],
  idempotency_mismatch: ["This message was sent before with other words", "Edit it and send it as a new message."],
  idempotency_pending: ["This was sent before and is still under way", "Wait a moment, then try again: nothing is made twice."],
  // what an operator asked
  tenant_fixed: ["This tenant is written in the gateway's settings", "It is changed there and nowhere else."],
  // the gateway
  draining: ["The gateway is restarting", "Send again in a moment."],
  store_unavailable: ["The gateway cannot reach its memory", "It usually comes back by itself. Send again in a moment."],
  worker_lost: ["The gateway lost this answer", "The part of it that was writing it stopped. Ask again to get a whole one."],
  internal: ["Something went wrong in the gateway", "It has been logged. Trying again may help."],
  // the assistant's service behind it
  upstream_unavailable: ["The assistant cannot be reached", "The gateway gets no connection to the assistant's service. Ask again in a moment."],
  upstream_overloaded: ["The assistant is very busy", "No place became free in time. Ask again in a moment."],
  upstream_timeout: ["The assistant took too long", "It stopped answering in time. What arrived is kept. Ask again to get a whole answer."],
  upstream_error: ["The assistant had an error", "Its service failed to answer. Ask again in a moment."],
  upstream_rejected: ["The assistant refused this", "Its service did not accept the message. Say it in other words, or start a new chat."],
  "upstream_rejected:404": ["The assistant no longer knows this conversation", "Start a new chat to go on."],
  upstream_unauthorized: ["The gateway is not let in", "The assistant's service refused the gateway's own key. Whoever runs the gateway has to look at it."],
  upstream_rate_limited: ["The assistant is at its limit", "The plan behind this gateway is used up for now. Ask again later."],
  upstream_truncated: ["The answer broke off", "The assistant's service ended it before it was complete. What arrived is kept."],
  upstream_malformed: ["The answer could not be read", "The assistant's service sent something unreadable. What arrived before is kept."],
  upstream_reset: ["The answer broke off", "The assistant's service ended it early. What arrived is kept."],
  answer_too_long: ["The answer grew too long", "It was ended at the greatest length allowed. Ask for a shorter one."],
};

/** Codes that only a page that is out of step with its gateway can cause. */
const OUT_OF_STEP = new Set([
  "bad_request", "malformed_json", "unknown_field", "missing_field", "wrong_type", "invalid_value", "invalid_id", "invalid_cursor",
  "length_required", "unsupported_media_type", "method_not_allowed", "expectation_failed", "frame_binary", "command_unknown",
]);

/** A failure with a code; the message is what the gateway said, {@link words} is what a person reads. */
export class Problem extends Error {
  /** @param {ProblemJson} json @param {number} [retryAfter_s] from a Retry-After header */
  constructor(json, retryAfter_s) {
    super(json.detail || json.title || json.code || "unknown problem");
    this.code = json.code || "unknown";
    this.json = json;
    this.status = json.status ?? 0;
    this.retryAfter_s = retryAfter_s || json.retry_after_s || 0;
  }

  /** Whether sending the same again can help. */
  get retryable() {
    if (typeof this.json.retryable === "boolean") return this.json.retryable;
    return this.status === 0 || this.status === 408 || this.status === 409 || this.status === 429 || this.status >= 500;
  }

  /** @param {Response} response a refused request; its body is read */
  static async fromResponse(response) {
    /** @type {ProblemJson} */
    let json = {};
    try {
      json = await response.json();
    } catch {
      json = { title: `The gateway answered ${response.status}` };
    }
    if (typeof json !== "object" || json === null) json = {};
    const wait_s = Number.parseFloat(response.headers.get("retry-after") ?? "");
    return new Problem({ ...json, status: response.status }, Number.isFinite(wait_s) ? wait_s : 0);
  }

  /** @param {unknown} error whatever was thrown */
  static from(error) {
    if (error instanceof Problem) return error;
    if (!navigator.onLine) return new Problem({ code: "offline" });
    if (error instanceof TypeError) return new Problem({ code: "network", detail: error.message });
    return new Problem({ code: "unknown", detail: String(error) });
  }
}

/**
 * @param {ProblemJson | Problem} problem
 * @returns {{title: string, text: string, reference: string}} a title, what it means and what to do, and the request to quote
 */
export function words(problem) {
  const json = problem instanceof Problem ? problem.json : problem;
  const code = json.code ?? "";
  const known = WORDS[`${code}:${json.vendor_status}`] ?? WORDS[OUT_OF_STEP.has(code) ? "not_understood" : code];
  const [title, text] = known ?? [json.title || "Something went wrong", json.detail || "Trying again may help."];
  return { title, text, reference: json.request_id ?? "" };
}

/** @type {Record<string, string>} */
const STOPPED = {
  user: "You stopped this answer.",
  disconnect: "This answer was stopped because nobody was reading it.",
  budget: "This answer was stopped: the budget for it is used up.",
  revoked: "This answer was stopped because access was withdrawn.",
  shutdown: "This answer was stopped because the gateway is shutting down.",
  admin: "This answer was stopped by an administrator.",
};

/** @param {string | undefined} reason why a turn was stopped */
export const stoppedWords = (reason) => STOPPED[reason ?? ""] ?? "This answer was stopped.";

/** @type {Record<string, string>} */
const FINISHED = {
  length: "The answer reached its greatest length and ends here.",
  content_filter: "Part of the answer was withheld by a content filter.",
};

/** @param {string | null | undefined} reason the finish reason; empty for an ordinary end */
export const finishedWords = (reason) => FINISHED[reason ?? ""] ?? "";
