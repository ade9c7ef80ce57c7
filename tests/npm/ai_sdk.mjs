// `useChat` of @ai-sdk/react in a page (jsdom) against a gateway: `node ai_sdk.mjs <scene>` with GATEWAY_URL, TOKENS
// (a JSON list) and CHAT (a chat's id). Prints one JSON document: what the page had at the end.
import { JSDOM } from "jsdom";

const { window } = new JSDOM("<!doctype html><div id=root></div>", { url: "http://localhost/", pretendToBeVisual: true });
globalThis.window = window;
globalThis.document = window.document;
globalThis.navigator ??= window.navigator;
const { createElement } = await import("react");
const { createRoot } = await import("react-dom/client");
const { Chat, useChat } = await import("@ai-sdk/react");
const { DefaultChatTransport } = await import("ai");

const tokens = JSON.parse(process.env.TOKENS);
const api = `${process.env.GATEWAY_URL}/api/chat`;
const id = process.env.CHAT;

function open({ user = 0, body, held = false, broken, ...options } = {}) {
  const page = { errors: [], data: [], finishes: [], statuses: [] };
  const headers = { Authorization: `Bearer ${tokens[user]}` };
  const transport = new DefaultChatTransport({ api, headers, body, fetch: broken });
  const listeners = new Set();
  const notify = () => queueMicrotask(() => listeners.forEach((listener) => listener()));
  const chat = held ? { chat: new Chat({ id, transport }) } : { id, transport };
  const Page = () => {
    page.chat = useChat({
      ...chat,
      onError: (error) => page.errors.push(error.message),
      onData: (part) => page.data.push(part),
      onFinish: ({ finishReason, isAbort, isError }) => {
        page.finishes.push({ finishReason, isAbort, isError });
        notify();
      },
      ...options,
    });
    if (page.statuses.at(-1) !== page.chat.status) page.statuses.push(page.chat.status);
    notify();
    return createElement("p", null, text(page));
  };
  page.until = (holds) =>
    new Promise((resolve) => {
      const look = () => holds() && (listeners.delete(look), resolve());
      listeners.add(look);
      look();
    });
  page.call = (path, init) => fetch(`${api}/${encodeURIComponent(id)}${path}`, { headers, ...init });
  page.told = () => ({
    messages: page.chat.messages,
    errors: page.errors,
    data: page.data,
    finishes: page.finishes,
    statuses: [...page.statuses],
    shown: window.document.getElementById("root").textContent,
  });
  createRoot(window.document.getElementById("root")).render(createElement(Page));
  return page;
}

const texts = (message) => message.parts.filter((part) => part.type === "text").map((part) => part.text).join("");
const text = (page) => page.chat.messages.filter((one) => one.role === "assistant").map(texts).join("|");
const begun = async (page) => page.until(() => page.chat);
const ask = async (page, words) => page.chat.sendMessage({ text: words });

const scenes = {
  async chat() {
    const page = open({ body: { persona: "default" } });
    await begun(page);
    await ask(page, "One? #tokens=12 #citations=2");
    await ask(page, "Two? #tokens=8");
    return page.told();
  },

  async leave() {
    const page = open();
    await begun(page);
    void ask(page, process.env.WORDS);
    await page.until(() => text(page).length > 20);
    return page.told(); // and the process ends, as a page does that is reloaded
  },

  async reload() {
    const headers = { Authorization: `Bearer ${tokens[0]}` };
    const before = await (await fetch(`${api}/${encodeURIComponent(id)}`, { headers })).json();
    const page = open({ messages: before.messages, resume: true });
    await begun(page);
    await page.until(() => page.finishes.length);
    return { ...page.told(), before };
  },

  async lost() {
    const broken = async (...asked) => {
      const { body, status, headers } = await fetch(...asked);
      let chunks = 0;
      const transform = (chunk, controller) => {
        if (++chunks > 12) throw new TypeError("network error"); // as Chromium tells it
        controller.enqueue(chunk);
      };
      const whole = asked[1].method !== "POST";
      return new Response(whole ? body : body?.pipeThrough(new TransformStream({ transform })), { status, headers });
    };
    const page = open({ held: true, broken });
    await begun(page);
    await ask(page, process.env.WORDS);
    await page.until(() => page.chat.status === "error");
    const left = page.told();
    await page.chat.resumeStream();
    await page.until(() => page.chat.status === "ready");
    return { ...page.told(), left };
  },

  async stop() {
    const page = open();
    await begun(page);
    void ask(page, "Hi #tokens=4000 #rate=60");
    await page.until(() => text(page).length > 20);
    const told = await (await page.call("/stop", { method: "POST" })).json();
    await page.until(() => page.finishes.length);
    const again = await (await page.call("/stop", { method: "POST" })).json();
    const resumed = (await page.call("/stream")).status;
    return { ...page.told(), told, again, resumed };
  },

  async own_stop() {
    const page = open();
    await begun(page);
    void ask(page, "Hi #tokens=400 #rate=100");
    await page.until(() => text(page).length > 20);
    await page.chat.stop();
    return { ...page.told(), resumed: (await page.call("/stream")).status };
  },

  async regenerate() {
    const page = open();
    await begun(page);
    await ask(page, "One? #tokens=6");
    await ask(page, "Two? #tokens=7");
    await page.chat.regenerate();
    await ask(page, "Three? #tokens=5");
    const read = await (await page.call("")).json();
    return { ...page.told(), read };
  },

  async edit() {
    const page = open();
    await begun(page);
    await ask(page, "One? #tokens=6");
    await ask(page, "Two? #tokens=7");
    await page.chat.sendMessage({ text: "Changed? #tokens=8", messageId: page.chat.messages[2].id });
    return page.told();
  },

  async failures() {
    const told = {};
    const say = async (name, message, options) => {
      const page = open(options);
      await page.until(() => page.chat);
      await page.chat.sendMessage(message);
      told[name] = page.told();
    };
    await say("middle", { text: "Hi #tokens=40 #fault=cut:6" });
    await say("vendor", { text: "Hi #fault=500" });
    const url = "data:text/plain,hi";
    await say("file", { text: "See", files: [{ type: "file", mediaType: "text/plain", url }] });
    await say("persona", { text: "Hi" }, { body: { persona: "nobody" } });
    return told;
  },

  async two_users() {
    const told = [];
    for (const user of [0, 1]) {
      const page = open({ user });
      await page.until(() => page.chat);
      await ask(page, `I am ${user}. #tokens=5`);
      told.push(page.told());
    }
    return told;
  },
};

console.log(JSON.stringify(await scenes[process.argv[2]]()));
process.exit(0);
