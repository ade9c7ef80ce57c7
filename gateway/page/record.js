/** The gateway's record of a conversation, and how its messages become entries of the page. */
import { Turn } from "./turn.js";

/**
 * @typedef {import("./conversation.js").Entry} Entry
 * @typedef {{message_id?: string | null, turn_id?: string | null, role?: string | null, content?: string | null,
 *            created_at?: string | null, state?: string | null, reason?: string | null, finish_reason?: string | null,
 *            usage?: import("./turn.js").Usage | null, feedback?: import("./turn.js").Feedback | null,
 *            error?: import("./problems.js").ProblemJson | null,
 *            citations?: import("./turn.js").Citation[] | null}} MessageRecord
 * @typedef {{id: string, persona?: string, status?: string | null, name?: string | null, created_at?: string | null,
 *            messages?: MessageRecord[], active_turn_id?: string | null}} ConversationRecord
 */

/**
 * Whether an entry of the page is a message of the record. Ids decide where both have one of the same kind.
 * @param {Entry} entry @param {MessageRecord} message
 */
export function isSame(entry, message) {
  if (entry.kind === "answer") {
    if (message.role !== "assistant") return false;
    return (!!entry.messageId && entry.messageId === message.message_id) || (!!entry.id && entry.id === message.turn_id);
  }
  if (message.role !== "user") return false;
  if (entry.turnId && message.turn_id) return entry.turnId === message.turn_id;
  if (entry.messageId && message.message_id) return entry.messageId === message.message_id;
  return entry.text === message.content; // one of the two has no id yet, or another kind of id
}

/** Takes over what the record knows better. @param {Entry} entry @param {MessageRecord} message */
export function absorb(entry, message) {
  entry.messageId = message.message_id || entry.messageId;
  if (entry.kind === "question") {
    entry.turnId = message.turn_id || entry.turnId;
    entry.state = "sent";
    entry.problem = null;
    return;
  }
  entry.feedback = message.feedback ?? entry.feedback;
  entry.usage = entry.usage ?? message.usage ?? null;
  if (!entry.citations.length) entry.citations = message.citations ?? [];
}

/** @param {MessageRecord} message @returns {Entry} */
export function entryOf(message) {
  if (message.role === "user") {
    const { content, message_id, turn_id } = message;
    return {
      kind: "question", text: content ?? "", messageId: message_id ?? "", turnId: turn_id ?? "", clientMessageId: "",
      state: "sent", problem: null,
    };
  }
  const turn = new Turn();
  turn.close(message, null);
  turn.feedback = message.feedback ?? null;
  turn.citations = message.citations ?? [];
  return turn;
}
