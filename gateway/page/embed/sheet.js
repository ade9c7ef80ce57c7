/** The widget's style, as a constructed sheet: a policy without `unsafe-inline` refuses `<style>` and `style=`, not this. */
const LIGHT = `color-scheme: light; --paper: #fbfbf9; --raised: #ffffff; --line: #e3e2dc; --ink: #1d1f20; --soft: #53585c;
  --accent: #0c6b63; --on-accent: #ffffff; --tint: #e5f0ee; --grave: #9c2f1e; --code: #f3f3ef;`;
const DARK = `color-scheme: dark; --paper: #151718; --raised: #212526; --line: #414849; --ink: #e9e9e6; --soft: #b0b6b7;
  --accent: #62c9ba; --on-accent: #07201d; --tint: #1f3432; --grave: #f0957f; --code: #101213;`;

export const sheet = new CSSStyleSheet();
sheet.replaceSync(`
:host { all: initial; ${LIGHT} font: 400 16px/1.5 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; color: var(--ink); }
@media (prefers-color-scheme: dark) { :host { ${DARK} } }
:host([data-theme=light]) { ${LIGHT} }
:host([data-theme=dark]) { ${DARK} }
*, *::before, *::after { box-sizing: border-box; }
[hidden] { display: none !important; }
button, textarea { font: inherit; color: inherit; }
button { cursor: pointer; border: 0; background: none; padding: 0; }
button:disabled { cursor: default; opacity: 0.5; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.icon { width: 22px; height: 22px; display: block; fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linecap: round; stroke-linejoin: round; }
.unseen { position: absolute; width: 1px; height: 1px; margin: -1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.bubble, .send, .tool { display: grid; place-items: center; border-radius: 999px; flex: none; }
.bubble { position: fixed; inset: auto 20px 20px auto; z-index: 2147483000; width: 56px; height: 56px; background: var(--accent); color: var(--on-accent); box-shadow: 0 4px 18px rgb(0 0 0 / 28%); }
.bubble .icon { width: 26px; height: 26px; }
dialog { position: fixed; inset: auto 20px 88px auto; z-index: 2147483000; margin: 0; padding: 0; width: min(390px, calc(100vw - 40px));
  height: min(620px, calc(100dvh - 108px)); max-width: none; max-height: none; border: 1px solid var(--line); border-radius: 16px; background: var(--paper); color: var(--ink);
  box-shadow: 0 10px 40px rgb(0 0 0 / 25%); overflow: hidden; }
dialog[open] { display: flex; flex-direction: column; }
dialog:focus { outline: none; }
dialog::backdrop { background: none; }
header { display: flex; align-items: center; gap: 4px; padding: 10px 10px 10px 16px; border-bottom: 1px solid var(--line); background: var(--raised); }
h2 { flex: 1; margin: 0; font-size: 16px; font-weight: 600; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.tool { width: 36px; height: 36px; color: var(--soft); }
.tool:hover { background: var(--tint); color: var(--ink); }
.thread { flex: 1; overflow-y: auto; overscroll-behavior: contain; padding: 16px; display: flex; flex-direction: column; gap: 12px; }
.past { display: contents; }
.thread > *, .past > * { max-width: 88%; overflow-wrap: anywhere; border-radius: 14px; padding: 9px 13px; }
.question { align-self: flex-end; background: var(--accent); color: var(--on-accent); white-space: pre-wrap; }
.answer { align-self: flex-start; background: var(--raised); border: 1px solid var(--line); }
.waiting::after { content: "…"; color: var(--soft); }
p, ul, ol, pre, blockquote { margin: 0; } * + p, * + ul, * + ol, * + pre, * + blockquote { margin-top: 8px; }
blockquote { border-left: 3px solid var(--line); padding-left: 10px; color: var(--soft); }
p { white-space: pre-wrap; } ul, ol { padding-left: 22px; } .heading { font-weight: 600; }
code { font: 14px/1.45 ui-monospace, Menlo, Consolas, monospace; background: var(--code); border-radius: 4px; padding: 1px 4px; }
pre { background: var(--code); border-radius: 8px; padding: 10px; overflow-x: auto; } pre code { padding: 0; background: none; }
a { color: var(--accent); }
.note { color: var(--soft); font-size: 14px; }
.problem { color: var(--grave); font-size: 14px; }
.again { color: var(--accent); text-decoration: underline; margin-left: 6px; }
form { display: flex; align-items: flex-end; gap: 8px; padding: 10px 12px; border-top: 1px solid var(--line); background: var(--raised); }
textarea { flex: 1; min-width: 0; resize: none; border: 1px solid var(--line); border-radius: 12px; padding: 8px 12px; background: var(--paper); max-height: 140px; field-sizing: content; }
textarea::placeholder { color: var(--soft); opacity: 1; }
.send { width: 42px; height: 42px; background: var(--accent); color: var(--on-accent); }
@media (max-width: 480px) {
  dialog { inset: 0; width: 100vw; height: 100dvh; border: 0; border-radius: 0; }
}
@media (forced-colors: active) { .bubble, .send, .answer, .question { border: 1px solid ButtonText; } }
`);
