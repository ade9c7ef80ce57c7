// `HttpAgent` of @ag-ui/client against a gateway: `node ag_ui.mjs <scene>` with GATEWAY_URL, TOKENS (a JSON list) and
// THREAD. Prints one JSON document. The client checks every event and their order itself, and fails a run that breaks it.
import { HttpAgent, runHttpRequest, transformHttpEventStream } from "@ag-ui/client";

const tokens = JSON.parse(process.env.TOKENS);
const url = `${process.env.GATEWAY_URL}/v1/ag-ui`;
const warnings = [];
console.warn = (...words) => warnings.push(words.join(" "));
console.error = console.warn;

// As on the page of documentation, but for its types.
class Agent extends HttpAgent {
  connect({ threadId, runId, protocolVersion = "" }) {
    this.abortController = new AbortController();
    const { headers, abortController: { signal } } = this;
    const url = `${this.url}/${encodeURIComponent(threadId)}/stream?${new URLSearchParams({ runId, protocolVersion })}`;
    return transformHttpEventStream(runHttpRequest(async () => {
      const answer = await this.fetch(url, { headers, signal });
      return answer.status === 204 ? new Response("") : answer; // no run is going on
    }));
  }
}

function agent(user = 0) {
  return new Agent({ url, threadId: process.env.THREAD, headers: { Authorization: `Bearer ${tokens[user]}` } });
}

async function run(one, content, parameters = {}) {
  const events = [];
  one.addMessage({ id: crypto.randomUUID(), role: "user", content });
  try {
    await one.runAgent(parameters, {
      onEvent: ({ event }) => void events.push(event),
      onTextMessageContentEvent: ({ event }) => void parameters.onText?.(event),
    });
    return { events };
  } catch (error) {
    return { events, error: error.message, status: error.status, payload: error.payload };
  }
}

const scenes = {
  async thread() {
    const one = agent();
    const first = await run(one, "One? #tokens=12 #citations=2");
    const second = await run(one, "Two? #tokens=8");
    return { first, second, messages: one.messages, warnings };
  },

  async changed() {
    const one = agent();
    await run(one, "One? #tokens=6");
    await run(one, "Two? #tokens=7");
    one.setMessages(one.messages.slice(0, 2));
    const told = await run(one, "Another? #tokens=8");
    return { told, messages: one.messages, warnings };
  },

  async stop() {
    const one = agent();
    let stopped;
    const stop = async () =>
      (await fetch(`${url}/${process.env.THREAD}/stop`, { method: "POST", headers: one.headers })).json();
    const told = await run(one, "Hi #tokens=4000 #rate=60", { onText: () => (stopped ??= stop()) });
    return { told, stopped: await stopped, messages: one.messages, warnings };
  },

  async left() {
    const one = agent();
    const told = await run(one, "Hi #tokens=120 #rate=60", { onText: () => one.abortRun() });
    const before = structuredClone(one.messages);
    const events = [];
    const connect = async () => {
      await one.connectAgent({}, {
        onEvent: ({ event }) => void events.push(event),
        onRunStartedEvent: ({ messages }) => ({
          messages: messages.slice(0, messages.findLastIndex((one) => one.role === "user") + 1),
        }),
      });
      return structuredClone(one.messages);
    };
    const messages = await connect();
    const rejoined = events.splice(0);
    const idle = await connect();
    return { told, before, rejoined, messages, idle: { events, messages: idle }, warnings };
  },

  async early() {
    const one = agent();
    const stop = async () => {
      for (let state = "idle"; state === "idle"; ) {
        const url_ = `${url}/${process.env.THREAD}/stop`;
        state = (await (await fetch(url_, { method: "POST", headers: one.headers })).json()).state;
      }
    };
    const [told] = await Promise.all([run(one, "Hi #tokens=40 #delay=20"), stop()]);
    return { told, messages: one.messages, warnings };
  },

  async failures() {
    const tool = { name: "f", description: "d", parameters: { type: "object" } };
    return {
      tools: await run(agent(), "Hi", { tools: [tool] }),
      context: await run(agent(), "Hi", { context: [{ description: "d", value: "v" }] }),
      persona: await run(agent(), "Hi", { forwardedProps: { persona: "nobody" } }),
      vendor: await run(agent(), "Hi #fault=500"),
      middle: await run(agent(), "Hi #tokens=40 #fault=cut:6"),
      warnings,
    };
  },
};

console.log(JSON.stringify(await scenes[process.argv[2]]()));
process.exit(0);
