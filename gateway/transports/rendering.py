"""A reference page's Markdown as an HTML document, by markdown-it-py.

The Markdown is our own, so HTML in it is kept. Headings get ids as on GitHub, links between pages lead to where the
gateway serves them, and tables lie in boxes of their own that a phone can scroll.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

_BESIDE: Final = re.compile(r"([a-z0-9-]+)\.md((?:#.*)?)")
_NO_WORD: Final = re.compile(r"[^\w\- ]")


Titles = Mapping[str, Mapping[str, str]]  # of the pages of each section, by their names


def rendered(text: str, sections: Titles, name: str | None) -> str:
    """Return the document of a page. ``sections`` are all pages; without a ``name`` it is their list."""
    tokens = _markdown.parse(text)
    _give_ids(tokens)
    body = _markdown.renderer.render(tokens, _markdown.options, {})
    links = "".join(
        f"<p>{html.escape(section)}</p><ul>{_links(titles, name)}</ul>" for section, titles in sections.items()
    )
    known = {one: title for titles in sections.values() for one, title in titles.items()}
    title = html.escape(known[name]) if name is not None else "Documentation"
    return _DOCUMENT.format(title=title, links=links, body=body)


def _links(titles: Mapping[str, str], name: str | None) -> str:
    return "".join(
        f'<li><a href="/docs/{one}"{" aria-current=page" if one == name else ""}>{html.escape(title)}</a></li>'
        for one, title in titles.items()
    )


def listed(sections: Titles) -> str:
    """Return the list of pages, as Markdown."""
    lines = []
    for section, titles in sections.items():
        lines += [f"\n## {section}\n", *(f"- [{title}](/docs/{name})" for name, title in titles.items())]
    return (
        "# Documentation\n"
        + "\n".join(lines)
        + "\n\nThe API's description for tools: [`/openapi.json`](/openapi.json).\n"
    )


def title_of(text: str) -> str:
    """Return a page's first heading."""
    return text.partition("\n")[0].removeprefix("# ")


def _give_ids(tokens: Sequence[Token]) -> None:
    """Name headings as GitHub does: in lower case, without punctuation, blanks as hyphens, repeats numbered."""
    seen: dict[str, int] = {}
    for heading, inline in itertools.pairwise(tokens):
        if heading.type == "heading_open":
            words = "".join(child.content for child in inline.children or ())
            slug = _NO_WORD.sub("", words.lower()).replace(" ", "-")
            count = seen[slug] = seen.get(slug, -1) + 1
            heading.attrSet("id", f"{slug}-{count}" if count else slug)


def _link_open(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    link = tokens[index]
    beside = _BESIDE.fullmatch(str(link.attrGet("href") or ""))
    if beside is not None:
        link.attrSet("href", f"/docs/{beside[1]}{beside[2]}")
    return str(self.renderToken(tokens, index, options, env))


def _table_open(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return '<div class="table" tabindex="0" role="group" aria-label="Table">\n<table>\n'


def _table_close(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return "</table>\n</div>\n"


_markdown: Final = MarkdownIt("commonmark", {"html": True}).enable("table")
_markdown.add_render_rule("link_open", _link_open)
_markdown.add_render_rule("table_open", _table_open)
_markdown.add_render_rule("table_close", _table_close)

_DOCUMENT: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · hyperleap-gateway</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/style.css">
</head>
<body>
<a class="skip" href="#content">Skip to the page</a>
<header><a href="/docs">hyperleap-gateway</a> <a class="more" href="#pages">All pages</a></header>
<main id="content">
{body}</main>
<nav id="pages" aria-label="Pages">{links}</nav>
</body>
</html>
"""
