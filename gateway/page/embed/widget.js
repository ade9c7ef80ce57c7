/**
 * The chat bubble for any site, by one tag:
 *
 *   <script src="https://chat.example.com/widget.js" data-key="hgp_…" data-persona="default" async></script>
 *
 * `data-title`, `data-greeting` and `data-theme` (`light` or `dark`; by default the reader's own) are optional. The site's
 * policy needs the gateway in `script-src` and, with its `wss:` address, in `connect-src`; without the latter the chat
 * goes by server-sent events. Nothing is asked of the gateway before the bubble is opened.
 */
(() => {
  const script = /** @type {HTMLScriptElement | null} */ (document.currentScript);
  if (!script?.dataset.key) return console.error("widget.js: give a publishable key as data-key, in a plain script tag");
  if (document.querySelector("hyperleap-chat")) return undefined; // the tag is there twice
  const { key, persona = "default", title = "Chat", greeting = "", theme = "" } = script.dataset;
  const url = new URL(".", script.src).href;
  const open = async () => {
    const { Bubble } = await import(new URL("page/embed/bubble.js", url).href);
    new Bubble({ url, key, persona, title, greeting, theme });
  };
  if (document.body) return void open();
  return document.addEventListener("DOMContentLoaded", open);
})();
