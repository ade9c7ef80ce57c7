// OpenAI's client for Node against a gateway: `node openai.mjs <scene>` with GATEWAY_URL and TOKENS (a JSON list).
// Prints one JSON document: what the client made of the answers.
import OpenAI from "openai";

const tokens = JSON.parse(process.env.TOKENS);
const client = (index = 0, options = {}) =>
  new OpenAI({ baseURL: `${process.env.GATEWAY_URL}/v1`, apiKey: tokens[index], maxRetries: 0, ...options });

const user = (content) => ({ role: "user", content });

async function reply(openai, messages, stream) {
  const asked = { model: "default", messages };
  if (!stream) return (await openai.chat.completions.create(asked)).choices[0].message.content;
  let text = "";
  for await (const chunk of await openai.chat.completions.create({ ...asked, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? "";
  }
  return text;
}

async function error(attempt) {
  try {
    await attempt();
  } catch (caught) {
    return { name: caught.constructor.name, status: caught.status, code: caught.code, param: caught.param };
  }
  return null;
}

const scenes = {
  async chat() {
    const openai = client();
    const whole = await openai.chat.completions.create({ model: "default", messages: [user("Hi #tokens=12")] });
    const chunks = [];
    const options = { stream: true, stream_options: { include_usage: true } };
    const asked = { model: "default", messages: [user("Hi #tokens=12")] };
    for await (const chunk of await openai.chat.completions.create({ ...asked, ...options })) chunks.push(chunk);
    const runner = openai.chat.completions.stream({ ...asked, ...options });
    const put_together = await runner.finalChatCompletion();
    const models = [];
    for await (const model of openai.models.list()) models.push(model.id);
    return { whole, chunks, put_together, models };
  },

  async loop() {
    const asked = process.env.WORDS.split("|");
    const lists = [];
    for (const index of [0, 1]) {
      const messages = [];
      for (const [turn, words] of asked.entries()) {
        messages.push(user(words));
        messages.push({ role: "assistant", content: await reply(client(index), messages, turn % 2 === 1) });
      }
      lists.push(messages);
    }
    await reply(client(0), lists[0].slice(0, 3), true); // the second answer, asked for again
    return lists;
  },

  async responses() {
    const openai = client();
    const first = await openai.responses.create({ model: "default", input: "One? #tokens=6" });
    const events = [];
    const second = { model: "default", input: "Two? #tokens=7", previous_response_id: first.id, stream: true };
    for await (const event of await openai.responses.create(second)) events.push(event);
    const stream = openai.responses.stream({ model: "default", input: "Hi #tokens=9" });
    const put_together = await stream.finalResponse();
    const kept = await openai.responses.retrieve(first.id);
    const begun = await openai.responses.create({
      model: "default",
      input: "Hi #tokens=4000 #rate=40",
      background: true,
    });
    const cancelled = await openai.responses.cancel(begun.id);
    await openai.responses.delete(first.id);
    const deleted = await error(() => openai.responses.retrieve(first.id));
    return { first, events, put_together, kept, cancelled, deleted };
  },

  async failures() {
    const openai = client(0, { maxRetries: 1 });
    const asked = (content, more = {}) => ({ model: "default", messages: [user(content)], ...more });
    return {
      key: await error(() => client(0, { apiKey: "sk-of-openais-own" }).models.list()),
      model: await error(() => openai.chat.completions.create(asked("Hi", { model: "gpt-4o" }))),
      tools: await error(() =>
        openai.chat.completions.create(asked("Hi", { tools: [{ type: "function", function: { name: "f" } }] })),
      ),
      refused: await error(() => reply(openai, [user("Hi #fault=empty-body-error:404")], true)),
      vendor: await error(() => reply(openai, [user("Hi #fault=500")], true)),
      middle: await error(() => reply(openai, [user("Hi #tokens=20 #fault=cut:6")], true)),
    };
  },

  async leave() {
    const stopped = new AbortController();
    const asked = { model: "default", messages: [user("Hi #tokens=4000 #rate=40")], stream: true };
    const stream = await client().chat.completions.create(asked, { signal: stopped.signal });
    let chunks = 0;
    for await (const _ of stream) if (++chunks === 5) stopped.abort();
    return { chunks };
  },
};

console.log(JSON.stringify(await scenes[process.argv[2]]()));
