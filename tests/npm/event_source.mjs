// eventsource-parser over fetch against a gateway: `node event_source.mjs turn` with GATEWAY_URL, TOKENS (a JSON list),
// CONVERSATION and WORDS. Prints one JSON document: the events of each connection, as the parser has read them.
import { EventSourceParserStream } from "eventsource-parser/stream";

const [token] = JSON.parse(process.env.TOKENS);
const base = { Authorization: `Bearer ${token}`, Accept: "text/event-stream" };

// What one connection brings until it ends or is lost.
async function read(path, options) {
  const told = { events: [], retry: null, lost: false };
  const response = await fetch(process.env.GATEWAY_URL + path, options);
  told.status = response.status;
  if (response.status !== 200) return told;
  const parser = new EventSourceParserStream({ onError: "terminate", onRetry: (ms) => (told.retry = ms) });
  try {
    const events = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(parser);
    for await (const { id, event, data } of events) told.events.push({ id, event, data: JSON.parse(data) });
  } catch {
    told.lost = true;
  }
  return told;
}

const scenes = {
  // One turn to its end, with the id of the last event after each loss, and once more when there is nothing left.
  async turn() {
    const connections = [
      await read(`/v1/conversations/${process.env.CONVERSATION}/turns`, {
        method: "POST",
        headers: { ...base, "Content-Type": "application/json" },
        body: JSON.stringify({ message: process.env.WORDS }),
      }),
    ];
    while (connections.at(-1).status === 200 && connections.length < 10) {
      const last = connections.flatMap((one) => one.events).at(-1).id;
      const path = `/v1/turns/${last.split(".")[0]}/events`;
      connections.push(await read(path, { headers: { ...base, "Last-Event-ID": last } }));
    }
    return connections;
  },
};

console.log(JSON.stringify(await scenes[process.argv[2]]()));
