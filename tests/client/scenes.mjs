// The client in Node: `node scenes.mjs <module> <scene>` with URL, KEY or TOKEN, and what else a scene reads from the environment.
// Prints one JSON document: what an application sees.
import { writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [, , file, scene] = process.argv;
const { Client, GatewayError } = await import(pathToFileURL(file).href);
const { URL: url, KEY: key, TOKEN: token, TRANSPORT: transport, MESSAGE: message = "Hi #tokens=40 #rate=0" } = process.env;
const given = { url, ...(key ? { key } : { token }), ...(transport ? { transport } : {}) };

const shown = (error) => {
  if (!(error instanceof GatewayError)) return { name: error.name, message: error.message };
  const { name, code, status, retryAfter, field, retryable, requestId } = error;
  return { name, code, status, retryAfter, field, retryable, quotable: Boolean(requestId) };
};

async function refused(attempt) {
  try {
    await attempt();
  } catch (error) {
    return shown(error);
  }
  return null;
}

/** Reads a turn to its end, as two readers of it do. */
async function read(turn, client) {
  const events = [];
  for await (const event of turn) {
    events.push(event);
    if (event.type === "message.delta" && process.env.BEGUN) writeFileSync(process.env.BEGUN, "");
  }
  const result = await turn.done();
  return {
    transport: client.transport,
    joined: events.filter(({ type }) => type === "message.delta").map(({ data }) => data.text).join(""),
    positions: events.map(({ id }) => Number(id.split(".")[1])),
    types: [...new Set(events.map(({ type }) => type))],
    last: events.at(-1).type,
    ...result,
    error: result.error && shown(result.error),
  };
}

const scenes = {
  async chat(client) {
    const chat = await client.create();
    return read(await chat.send(message), client);
  },

  async stop(client) {
    const chat = await client.create();
    const turn = await chat.send(message);
    for await (const event of turn) if (event.type === "message.delta") break;
    await turn.stop();
    await turn.stop(); // safe to repeat
    return read(turn, client);
  },

  async elsewhere(client) {
    const chat = await client.create();
    const turn = await chat.send(message);
    const first = [];
    for await (const event of turn) if (event.type === "message.delta" && first.push(event.data.text) === 5) break;
    const { cursor, text } = turn;
    const other = new Client({ ...given, transport: client.transport === "ws" ? "sse" : undefined, visitorId: client.visitorId });
    const rest = await read(other.conversation(chat.id).turn(turn.id, cursor), other);
    const whole = await read(await other.conversation(chat.id).turn(turn.id), other);
    const idle = await chat.resume();
    other.close();
    return { seen: text.length, first: first.join(""), rest, whole, idle };
  },

  async resume(client) {
    const chat = await client.create();
    const turn = await chat.send(message);
    const other = new Client({ ...given, visitorId: client.visitorId });
    const again = await other.conversation(chat.id).resume();
    const told = [turn.id === again.id, await read(turn, client), await read(again, other)];
    other.close();
    return told;
  },

  async twice(client) {
    const chat = await client.create();
    const [one, two] = await Promise.all([chat.send(message, { clientMessageId: "m1" }), chat.send(message, { clientMessageId: "m1" })]);
    const { messages } = (await one.done(), await two.done(), await chat.read());
    return { same: one.id === two.id, questions: messages.filter(({ role }) => role === "user").length };
  },

  async rate(client) {
    const chat = await client.create();
    const turn = await chat.send(message);
    await turn.done();
    const given = await turn.rate(8, { comments: "clear", tags: ["short"] });
    const outside = await refused(() => turn.rate(11));
    const { data } = await client.list({ limit: 1 });
    return { given, outside, listed: data[0].id === chat.id };
  },

  async errors(client) {
    const chat = await client.create();
    const strange = client.conversation("00000000-0000-4000-8000-000000000000");
    const turn = await chat.send(`${message} #fault=reset:1`);
    return {
      persona: await refused(() => client.create({ persona: "nobody" })),
      empty: await refused(() => chat.send("")),
      unknown: await refused(() => strange.send("Hi")),
      stranger: await refused(() => strange.turn("00000000-0000-4000-8000-000000000000").done()),
      failed: await read(turn, client),
    };
  },

  async limited(client) {
    const chat = await client.create();
    return refused(async () => {
      for (let i = 0; i < 9; i++) await chat.send("Hi #tokens=1 #rate=0").then((turn) => turn.done());
    });
  },

  async refused(client) {
    return refused(() => client.create().then((chat) => chat.send(message)).then((turn) => turn.done()));
  },

  async renewed() {
    let minted = 0;
    const mint = async () => {
      minted++;
      const headers = { authorization: `Bearer ${process.env.SECRET_KEY}`, "content-type": "application/json" };
      const body = JSON.stringify({ user_id: "renewed", ttl_s: 3 });
      return (await fetch(`${url}/v1/sessions`, { method: "POST", headers, body })).json();
    };
    const client = new Client({ url, token: mint, ...(transport ? { transport } : {}) });
    const chat = await client.create();
    const told = await read(await chat.send(message), client);
    await chat.send("Again #tokens=3").then((turn) => turn.done());
    client.close();
    return { ...told, minted };
  },

  async useless() {
    const options = [{}, { url }, { url, key: "hgp_a", token: "b" }, { url, key: "hgs_a.b.c" }, { key: "hgp_a.b.c" }];
    const told = await Promise.all(options.map((each) => refused(async () => new Client(each))));
    const client = new Client(given);
    client.close();
    return [...told, await refused(() => client.conversation("c").send("Hi"))];
  },

  async injected() {
    const { default: WebSocket } = await import(pathToFileURL(process.env.WS).href);
    const client = new Client({ ...given, WebSocket });
    const told = await scenes.chat(client);
    client.close();
    return told;
  },
};

const client = key || token ? new Client(given) : undefined;
const told = await scenes[scene](client);
client?.close(); // nothing holds the process any more
console.log(JSON.stringify(told));
