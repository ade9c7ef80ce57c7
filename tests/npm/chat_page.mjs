// A page as an app built with React has it, to be bundled for a browser: `useChat` of @ai-sdk/react with `resume`. Its
// settings are in the address: `#<JSON with url, token, id>`.
import { createElement as h, useState } from "react";
import { createRoot } from "react-dom/client";
import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";

const { url, token, id } = JSON.parse(decodeURIComponent(location.hash.slice(1)));
const api = `${url}/api/chat`;
const headers = { Authorization: `Bearer ${token}` };

function Page({ messages: before }) {
  const [words, setWords] = useState("");
  const { messages, sendMessage, status, error } = useChat({
    id,
    messages: before,
    resume: true,
    transport: new DefaultChatTransport({ api, headers }),
  });
  const text = ({ parts }) => parts.filter(({ type }) => type === "text").map((part) => part.text).join("");
  const send = (event) => {
    event.preventDefault();
    void sendMessage({ text: words });
    setWords("");
  };
  return h("main", { "data-status": status },
    messages.map((message) => h("p", { key: message.id, "data-role": message.role }, text(message))),
    error && h("p", { role: "alert" }, error.message),
    h("form", { onSubmit: send }, h("input", { "aria-label": "Message", value: words, onChange: (event) => setWords(event.target.value) })),
    h("button", { onClick: () => fetch(`${api}/${id}/stop`, { method: "POST", headers }) }, "Stop"));
}

const found = await fetch(`${api}/${id}`, { headers });
const { messages } = found.ok ? await found.json() : { messages: [] };
createRoot(document.body.appendChild(document.createElement("div"))).render(h(Page, { messages }));
