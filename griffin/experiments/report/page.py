"""Page: a Markdown text as one HTML file with its pictures inside, light and dark, for screen and paper.

HTML in the text is not interpreted: it stays text.
"""

import base64
import html
import importlib.util
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from griffin.errors import GriffinError
from griffin.experiments.common.pictures import BLUE, DARK, GRID, INK, INSTALL, MUTED, PAPER, SKY

if TYPE_CHECKING:
    from markdown_it.token import Token

PICTURES = {".svg": "image/svg+xml", ".png": "image/png"}
NO_BREAK = "\N{NO-BREAK SPACE}"
# The browser loads nothing for this page, even if a text has the address of something.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(markdown: str, title: str, folder: Path) -> str:
    """
    Args:
        markdown: its headings of levels two and three become the table of contents.
        folder: the addresses of pictures are relative to it.

    Raises:
        GriffinError: markdown-it is not installed, or a picture cannot be read.
    """
    require_markdown_it()
    from markdown_it import MarkdownIt

    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    renderer.add_render_rule("table_open", _table_open)
    renderer.add_render_rule("table_close", _table_close)
    tokens = renderer.parse(markdown)
    contents = _name_headings(tokens)
    _embed_pictures(tokens, folder)
    _keep_together(tokens)
    return TEMPLATE.format(
        policy=html.escape(POLICY),
        title=html.escape(title),
        style=STYLE,
        contents=contents,
        body=renderer.renderer.render(tokens, renderer.options, {}),
    )


def require_markdown_it() -> None:
    """
    Raises:
        GriffinError: markdown-it is not installed.
    """
    if importlib.util.find_spec("markdown_it") is None:
        raise GriffinError(f"a report needs markdown-it, of the extra 'experiments'; {INSTALL}")


def _table_open(*_: Any) -> str:
    # A wide table scrolls without the rest of the page, also by keyboard.
    return '<div class="table" tabindex="0" role="group"><table>\n'


def _table_close(*_: Any) -> str:
    return "</table></div>\n"


def _name_headings(tokens: Sequence["Token"]) -> str:
    """Give each heading its own address.

    Returns:
        A list of links to them, as HTML.
    """
    taken: set[str] = set()
    lines = []
    for token, inline in pairwise(tokens):
        if token.type != "heading_open":
            continue
        words = _plain(inline)
        name = _free(re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "section", taken)
        token.attrSet("id", name)
        if token.tag in ("h2", "h3"):
            lines.append(f'<li class="{token.tag}"><a href="#{name}">{html.escape(words)}</a></li>')
    return "\n".join(lines)


def _plain(inline: "Token") -> str:
    return "".join(child.content for child in inline.children or ())


def _free(name: str, taken: set[str]) -> str:
    number, free = 2, name
    while free in taken:
        number, free = number + 1, f"{name}-{number}"
    taken.add(free)
    return free


def _keep_together(tokens: Sequence["Token"]) -> None:
    """Keep a number and its percent sign on one line."""
    for token in tokens:
        for child in token.children or ():
            if child.type == "text":
                child.content = re.sub(r"(?<=\d) (?=%)", NO_BREAK, child.content)


def _embed_pictures(tokens: Sequence["Token"], folder: Path) -> None:
    for token in tokens:
        for child in token.children or ():
            if child.type == "image":
                child.attrSet("src", _data_address(folder / unquote(str(child.attrs["src"]))))


def _data_address(path: Path) -> str:
    if path.suffix not in PICTURES:
        raise GriffinError(f"'{path}' is no picture that a page can hold; use one of: {', '.join(PICTURES)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GriffinError(f"cannot read the picture '{path}': {error.strerror}") from error
    return f"data:{PICTURES[path.suffix]};base64,{base64.b64encode(content).decode()}"


STYLE = f"""\
:root {{
  color-scheme: light dark;
  --ink: {INK}; --paper: {PAPER}; --muted: {MUTED}; --line: {GRID}; --shade: #f6f8fa; --accent: {BLUE};
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --ink: {DARK[INK]}; --paper: {DARK[PAPER]}; --muted: {DARK[MUTED]}; --line: {DARK[GRID]};
    --shade: #161b22; --accent: {SKY};
  }}
}}
* {{ box-sizing: border-box; }}
html {{ scroll-padding-top: 1rem; }}
body {{
  margin: 0 auto; padding: 0 1.25rem 4rem; max-width: 80rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}}
a {{ color: var(--accent); text-underline-offset: .15em; }}
nav ul {{
  margin: 0 -1.25rem; padding: .6rem 1.25rem; display: flex; gap: 1.25rem; overflow-x: auto; white-space: nowrap;
  list-style: none; font-size: .875rem; border-bottom: 1px solid var(--line);
}}
nav li.h3 {{ display: none; }}
nav a {{ color: var(--muted); text-decoration: none; }}
nav a:hover {{ color: var(--accent); }}
main {{ min-width: 0; }}
main > p, main > ul, main > blockquote {{ max-width: 46rem; }}
h1, h2, h3 {{ line-height: 1.25; text-wrap: balance; overflow-wrap: anywhere; }}
h1 {{ margin: 2rem 0 .75rem; font-size: 1.9rem; letter-spacing: -.01em; }}
h2 {{ margin: 3.5rem 0 .75rem; padding-top: 1.25rem; font-size: 1.35rem; border-top: 1px solid var(--line); }}
h1 + p + h2 {{ margin-top: 1.5rem; padding-top: 0; border-top: 0; }}
h3 {{ margin: 2rem 0 .5rem; font-size: 1.05rem; }}
ul {{ padding-left: 1.2rem; }}
li {{ margin: .25rem 0; }}
blockquote {{
  margin: 1rem 0; padding: .9rem 1.1rem; font-size: 1.15rem; line-height: 1.45; background: var(--shade);
  border-left: .25rem solid var(--accent); border-radius: .25rem;
}}
blockquote p {{ margin: 0; }}
main > p:has(> img) {{ max-width: none; }}
img {{ display: block; max-width: 100%; height: auto; margin: 1rem 0; }}
p:has(+ .table) {{ margin: 1.75rem 0 .5rem; color: var(--muted); font-size: .9rem; }}
.table {{ overflow-x: auto; margin: .5rem 0 1.5rem; }}
table {{
  border-collapse: collapse; font-size: .875rem; line-height: 1.4; font-variant-numeric: tabular-nums;
}}
th, td {{ padding: .35rem .75rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }}
th {{ vertical-align: bottom; font-weight: 600; border-bottom-color: var(--muted); }}
th:first-child, td:first-child {{ position: sticky; left: 0; padding-left: 0; background: var(--paper); }}
td[style], td:has(+ td[style]) {{ white-space: nowrap; }}
tbody tr:hover td {{ background: var(--shade); }}
code {{ font: .875em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
pre {{
  padding: .8rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; background: var(--shade);
  border-radius: .25rem; line-height: 1.5;
}}
@media (min-width: 72rem) {{
  body {{ display: grid; grid-template-columns: 13rem minmax(0, 1fr); gap: 3rem; }}
  nav ul {{
    position: sticky; top: 0; max-height: 100vh; margin: 0; padding: 2.4rem 0 1rem; display: block;
    white-space: normal; overflow-y: auto; border: 0;
  }}
  nav li {{ margin: .45rem 0; line-height: 1.35; }}
}}
@media print {{
  :root {{
    color-scheme: light; --ink: #000; --paper: #fff; --muted: {MUTED}; --line: {GRID}; --shade: #fff;
  }}
  body {{ display: block; max-width: none; padding: 0; font-size: 10pt; }}
  nav {{ display: none; }}
  .table {{ overflow: visible; }}
  table {{ font-size: 7.5pt; }}
  th:first-child, td:first-child {{ position: static; }}
  td[style], td:has(+ td[style]) {{ white-space: normal; }}
  h2, h3 {{ break-after: avoid; }}
  img, tr, blockquote {{ break-inside: avoid; }}
}}"""

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<nav aria-label="Contents">
<ul>
{contents}
</ul>
</nav>
<main>
{body}</main>
</body>
</html>
"""
