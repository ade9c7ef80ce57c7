// What an application writes, and what the types keep it from writing. Compiled by a test, never run.
import { Client, Conversation, GatewayError, Turn, type TurnEvent, type TurnResult } from "./client.js";

const visitor = new Client({ key: "hgp_…", storage: { getItem: () => null, setItem: () => {} } });
const member = new Client({ url: "https://chat.example.com", token: async () => ({ token: "hgt_…", expires_at: "2026-11-22T08:00:00Z" }) });
const plain = new Client({ url: "https://chat.example.com", token: () => "hgt_…", transport: "sse", WebSocket: class {} });

export async function converse(): Promise<number> {
  const chat: Conversation = await visitor.create({ persona: "default", replacements: { name: "Ada" } });
  const turn: Turn = await chat.send("Hello!", { clientMessageId: "m1" });
  for await (const event of turn) {
    switch (event.type) {
      case "message.delta":
        event.data.text.trim();
        break;
      case "turn.queued":
        event.data.position.toFixed();
        break;
      case "turn.failed":
        event.data.error.code.trim();
        break;
      case "turn.stopped":
        // @ts-expect-error no such reason
        event.data.reason === "boredom";
        break;
      // @ts-expect-error no such event
      case "turn.vanished":
        break;
    }
  }
  const result: TurnResult = await turn.done();
  await turn.rate(8, { comments: "clear" });
  // @ts-expect-error a score is a number
  await turn.rate("8");
  // @ts-expect-error the state is read, not set
  turn.state = "completed";
  return result.usage?.total_tokens ?? 0;
}

export async function goOn(event: TurnEvent): Promise<void> {
  const chat = member.conversation("…");
  const [id = ""] = event.id.split(".");
  await (await chat.resume())?.stop();
  chat.turn(id, event.id).leave();
  try {
    await plain.list({ limit: 5 });
  } catch (error) {
    if (error instanceof GatewayError && error.retryable) await new Promise((resolve) => setTimeout(resolve, 1000 * (error.retryAfter ?? 1)));
  }
  // @ts-expect-error made by the client only
  new Turn();
  // @ts-expect-error the transport is one of two
  new Client({ key: "hgp_…", transport: "carrier pigeon" });
  plain.close();
}
