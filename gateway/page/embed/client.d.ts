/** Types of client.js, the client of hyperleap-gateway for browsers and Node.js 20 or later. */

export interface TokenSource {
  /** A session token of the gateway, or one of your own issuer's. */
  token: string;
  /** RFC 3339; where it is missing, a JWT's own `exp` counts. */
  expires_at?: string;
}

export interface VisitorStorage {
  getItem(name: string): string | null;
  setItem(name: string, value: string): void;
}

/** Give `key` or `token`, not both. */
export interface ClientOptions {
  /** Where the gateway is; by default where client.js was loaded from. */
  url?: string | undefined;
  /** A publishable key (`hgp_…`): the client opens anonymous sessions with it and renews them before they end. */
  key?: string | undefined;
  /**
   * A session token of your backend's. As a function it is called again before the token ends; a plain string is used
   * until it ends.
   */
  token?: string | (() => TokenSource | string | Promise<TokenSource | string>) | undefined;
  /** The visitor that an earlier session with the key was for; their conversations are found again. */
  visitorId?: string | undefined;
  /** Where the visitor's id is kept between visits, such as `localStorage`; nowhere by default. */
  storage?: VisitorStorage | undefined;
  /** `"sse"` uses no WebSocket. By default a WebSocket is tried first, where there is one. */
  transport?: "ws" | "sse" | undefined;
  /** A WebSocket constructor, where the platform has none (`import WebSocket from "ws"`). */
  WebSocket?: unknown;
  /** Used instead of the global `fetch`. */
  fetch?: typeof globalThis.fetch | undefined;
}

export interface Usage {
  prompt_tokens: number | null;
  completion_tokens: number | null;
  total_tokens: number | null;
  source: "reported" | "estimated";
}

export interface Problem {
  code: string;
  detail?: string;
  retryable?: boolean;
  retry_after_s?: number;
  vendor_status?: number;
}

interface EventOf<Type extends string, Data> {
  /** A position in the answer: everything up to here was seen. */
  id: string;
  type: Type;
  data: Data;
}

interface Ending {
  message_id: string | null;
  run_id: string | null;
  /** The whole answer as far as it came. */
  text: string;
  usage: Usage;
}

/** What happens in a turn, in order; the last one is exactly one of the three endings. */
export type TurnEvent =
  | EventOf<"turn.started", { turn_id: string; conversation_id: string; ordinal: number }>
  | EventOf<"turn.queued", { position: number; wait_s: number }>
  | EventOf<"message.started", { message_id: string | null; run_id: string | null; role: string }>
  | EventOf<"message.delta", { text: string }>
  | EventOf<"message.citations", { citations: Record<string, unknown>[] }>
  | EventOf<"message.moderated", { categories: Record<string, unknown>[] }>
  | EventOf<"message.extra", { index: number; role: string | null; name: string | null; tool_call_id: string | null; content: string | null }>
  | EventOf<"turn.completed", Ending & { finish_reason: string }>
  | EventOf<"turn.stopped", Ending & { reason: "user" | "disconnect" | "budget" | "revoked" | "shutdown" | "admin" }>
  | EventOf<"turn.failed", Ending & { error: Problem }>;

export type TurnState = "waiting" | "queued" | "streaming" | "completed" | "stopped" | "failed";

/** How a turn ended. */
export interface TurnResult {
  /** `completed`, `stopped` or `failed`; another one only after `leave()`. */
  state: TurnState;
  text: string;
  messageId: string | undefined;
  usage: Usage | undefined;
  /** Of a completed turn. */
  finishReason: string | undefined;
  /** Why it was stopped. */
  reason: string | undefined;
  /** Why it failed. */
  error: GatewayError | undefined;
}

export interface Rating {
  comments?: string;
  tags?: string[];
  /** 0 to 1 */
  confidence?: number;
}

export interface Message {
  message_id?: string | null;
  turn_id?: string | null;
  role?: string | null;
  content?: string | null;
  created_at?: string | null;
  state?: string | null;
  [member: string]: unknown;
}

export interface ConversationSummary {
  id: string;
  persona: string;
  status: string;
  name: string | null;
  created_at: string;
  [member: string]: unknown;
}

export interface ConversationRecord extends ConversationSummary {
  messages: Message[];
  metadata: Record<string, unknown>;
  /** The turn that is being answered. */
  active_turn_id: string | null;
}

/** Every failure. What the gateway refused has its code and status; `network` and `no_answer` come from here. */
export class GatewayError extends Error {
  private constructor();
  /** A stable code of the gateway's table (`/docs/errors`), or `network`, `no_answer`, `closed`. */
  readonly code: string;
  /** The HTTP status; 0 where no HTTP answer told it. */
  readonly status: number;
  /** Seconds after which to try again, where the gateway says so. */
  readonly retryAfter: number | undefined;
  /** The field of the request that is wrong. */
  readonly field: string | undefined;
  /** What to quote to whoever runs the gateway. */
  readonly requestId: string | undefined;
  /** Whether the same may succeed later. */
  readonly retryable: boolean;
}

/** An answer. It is read from the start, whether or not anybody iterates, and goes on over lost connections. */
export class Turn implements AsyncIterable<TurnEvent> {
  private constructor();
  readonly id: string;
  readonly conversationId: string;
  readonly state: TurnState;
  /** The answer so far. */
  readonly text: string;
  readonly messageId: string | undefined;
  /** The id of the last event; `conversation.turn(id, cursor)` goes on after it, also on another page or device. */
  readonly cursor: string;
  /**
   * All events from the beginning, to the ending; may be iterated more than once, and leaving a loop leaves nothing else.
   * Throws GatewayError where the events cannot be had any more (`history_lost`: read the conversation).
   */
  [Symbol.asyncIterator](): AsyncGenerator<TurnEvent, void, undefined>;
  /** Waits for the ending. A turn that failed is a result with an `error`; throws as iterating does. */
  done(): Promise<TurnResult>;
  /** Stops the answer; its ending follows as an event. Safe to repeat. Throws GatewayError. */
  stop(): Promise<void>;
  /** Stops reading. What becomes of the answer is the tenant's rule. */
  leave(): void;
  /** Rates the answer, −10 to 10. Throws GatewayError, and TypeError before the answer has a message. */
  rate(score: number, more?: Rating): Promise<Record<string, unknown>>;
}

export class Conversation {
  private constructor();
  readonly id: string;
  /** The gateway's record with its messages. Throws GatewayError. */
  read(): Promise<ConversationRecord>;
  /**
   * Sends a message; resolves once the gateway has it. A repeat with the same `clientMessageId` is the same turn.
   * Throws GatewayError.
   */
  send(message: string, options?: { clientMessageId?: string }): Promise<Turn>;
  /** The turn that is being answered, from its beginning; null when there is none. Throws GatewayError. */
  resume(): Promise<Turn | null>;
  /** A turn of this conversation by its id, after a cursor or from its beginning. */
  turn(id: string, after?: string): Turn;
  /** Rates a message, −10 to 10. Throws GatewayError. */
  rate(messageId: string, score: number, more?: Rating): Promise<Record<string, unknown>>;
}

export class Client {
  /** Throws TypeError for options that cannot be meant. Nothing is sent before the first call. */
  constructor(options: ClientOptions);
  /** What is used now; `"ws"` becomes `"sse"` where a WebSocket cannot be had. */
  readonly transport: "ws" | "sse";
  /** Of the anonymous visitor, once a session is open. */
  readonly visitorId: string | undefined;
  /** Opens a conversation. Throws GatewayError. */
  create(options?: {
    persona?: string;
    replacements?: Record<string, string | number | boolean | null>;
    metadata?: Record<string, unknown>;
    idempotencyKey?: string;
  }): Promise<Conversation>;
  /** A conversation by its id; nothing is asked of the gateway. */
  conversation(id: string): Conversation;
  /** One page of the user's conversations, the latest first. Throws GatewayError. */
  list(options?: { limit?: number; cursor?: string }): Promise<{ data: ConversationSummary[]; next_cursor: string | null }>;
  /** Ends all reading and closes the WebSocket, which keeps a Node.js process alive otherwise. */
  close(): void;
}
