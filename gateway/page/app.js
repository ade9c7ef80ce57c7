/** Puts the page together; nothing here knows how anything is done. */
import { Api } from "./api.js";
import { Banner } from "./banner.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { button, byId, h } from "./dom.js";
import { Link } from "./link.js";
import { Problem, words } from "./problems.js";
import { Session } from "./session.js";
import { Sidebar } from "./sidebar.js";
import { Thread } from "./thread.js";
import { Welcome } from "./welcome.js";

const query = new URLSearchParams(location.search);
const opened = Session.takeFragment();

const session = new Session();
const api = new Api(session);
const welcome = new Welcome();

welcome.onenter = (text) => {
  session.accept(text);
  location.reload();
};

/** The chat proper, for someone who got in. @param {string | null} first the conversation to open */
function run(first) {
  const banner = new Banner();
  const composer = new Composer();
  const sidebar = new Sidebar(api);
  let live = false;

  const link = new Link(session, api, {
    onFrame: (frame) => chat.take(frame),
    onGone: (turnId, problem) => void chat.gone(turnId, problem),
    onBroken: (turnId, conversationId) => chat.mend(turnId, conversationId),
    onState: (state, problem) => {
      banner.show(state, link.transport, problem);
      if (state === "live" && !live) chat.resume();
      live = state === "live";
      if (state === "closed" && problem && (problem.json.status === 401 || problem.code === "session_over")) leave(problem);
    },
  }, query.get("transport") === "sse");

  const chat = new Chat(api, link, query.get("persona") ?? "default");
  const thread = new Thread(byId("scroller"), byId("thread"), byId("jump"), {
    retry: (question) => void chat.retry(question),
    edit: (question) => {
      chat.current.remove(question);
      composer.text = question.text;
      composer.focus();
    },
    askAgain: (turn) => chat.askAgain(turn),
    rate: (turn, feedback) => chat.rate(turn, feedback),
  });

  const draw = () => {
    const { current } = chat;
    const { active } = current;
    composer.show(active ? (active.stopping ? "stopping" : "busy") : "idle");
    byId("greeting").hidden = current.entries.length > 0 || !byId("failure").hidden;
    const title = sidebar.titleOf(current);
    byId("title").textContent = title;
    document.title = current.id ? `${title} · Hyperleap chat` : "Hyperleap chat";
  };

  chat.onchange = (conversation) => {
    if (conversation.id) {
      sidebar.titleOf(conversation);
      sidebar.mark(conversation.id, conversation.active !== null);
    }
    if (conversation === chat.current) draw();
  };
  chat.oncreated = (record) => {
    sidebar.add(record);
    if (record.id !== chat.current.id) return;
    sidebar.select(record.id);
    history.replaceState(null, "", `${location.pathname}${location.search}#c=${record.id}`);
  };
  chat.onshown = (conversation) => {
    byId("failure").hidden = true;
    thread.show(conversation);
    sidebar.select(conversation.id);
    draw();
  };

  /** @param {string | null} id @param {boolean} [remember] make a step of the browser's history */
  const go = async (id, remember = false) => {
    if (remember) history.pushState(null, "", `${location.pathname}${location.search}${id ? `#c=${id}` : ""}`);
    byId("failure").hidden = true;
    composer.focus();
    if (!id) return chat.begin();
    try {
      await chat.open(id);
    } catch (error) {
      const problem = Problem.from(error);
      if (problem.status === 401) return leave(problem);
      chat.begin();
      showFailure(problem, () => go(id));
    }
    return undefined;
  };

  /** @param {Problem} problem @param {() => void} again */
  const showFailure = (problem, again) => {
    const { title, text } = words(problem);
    const failure = byId("failure");
    failure.replaceChildren(
      h("h2", {}, title), h("p", {}, text),
      h("p", {},
        problem.retryable && button("Try again", "", again),
        button("Start a new chat", "quiet", () => void go(null, true))));
    failure.hidden = false;
    draw();
  };

  composer.onsend = (text) => {
    void chat.ask(text);
    thread.toEnd("instant");
  };
  composer.onstop = () => void chat.stop();
  sidebar.onselect = (id) => void go(id, true);
  banner.onleave = () => leave();
  byId("new-chat").addEventListener("click", () => (sidebar.close(), go(null, true)));
  byId("new-chat-small").addEventListener("click", () => go(null, true));
  byId("leave").addEventListener("click", () => leave());
  for (const button of document.querySelectorAll("[data-suggestion]")) {
    button.addEventListener("click", () => composer.onsend(button.textContent?.trim() ?? ""));
  }
  addEventListener("popstate", () => {
    const fragment = new URLSearchParams(location.hash.slice(1));
    if (fragment.has("key") || fragment.has("token")) return; // see enter()
    if (fragment.get("c") !== (chat.current.id || null)) void go(fragment.get("c"));
  });
  addEventListener("online", () => link.wake());
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    link.wake();
    if (link.transport === "sse" && chat.current.id) chat.refresh(chat.current).catch(() => {}); // nothing is pushed there
  });

  link.open();
  void sidebar.load();
  return go(first);
}

/** Back to the form. @param {Problem} [problem] why */
function leave(problem) {
  session.forget();
  if (problem) return welcome.show(problem);
  return location.reload();
}

async function enter() {
  addEventListener("hashchange", () => {
    // a link with a key was pasted into a tab that already shows the page
    if (!/[#&](key|token)=/.test(location.hash)) return;
    Session.takeFragment();
    location.reload();
  });
  if (!session.known) return welcome.show();
  try {
    await session.token();
  } catch (error) {
    const problem = Problem.from(error);
    if (problem.status !== 0 && !problem.retryable) return welcome.show(problem);
  }
  welcome.hide();
  return run(opened);
}

void enter();
