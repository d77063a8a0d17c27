"""Pages that need no other file: their style, and the pieces that they are put together from."""

from collections.abc import Sequence
from html import escape
from typing import Any

from xdray.configfile import to_yaml
from xdray.figures import Rows
from xdray.pictures import PALETTE

LIGHT, DARK = (
    "".join(f"--{name}:{colours[side]};" for name, colours in PALETTE.items()) for side in (0, 1)
)
STYLE = (
    f""":root{{{LIGHT}--soft:#5b6470;--panel:#f5f6f8;color-scheme:light dark}}
@media(prefers-color-scheme:dark){{:root{{{DARK}--soft:#9aa4b1;--panel:#1f242a}}}}
"""
    + """
*{box-sizing:border-box}
body{margin:0 auto;padding:2.5rem 1.5rem 4rem;max-width:66rem;color:var(--ink);
background:var(--paper);font:15px/1.5 system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.6rem 0 .7rem}
p{margin:.4rem 0}.soft{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:.8rem;
margin:1.4rem 0}
.tile{background:var(--panel);border-radius:10px;padding:.9rem 1.1rem}
.tile b{display:block;font-size:1.6rem;line-height:1.3;color:var(--student)}
.tile span{display:block;font-size:.85rem;color:var(--soft)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(24rem,1fr));gap:1rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.32rem .7rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th{font-weight:600;font-size:.85rem;color:var(--soft)}
th:first-child,td:first-child{text-align:left}
.steps th:nth-child(2),.steps td:nth-child(2){text-align:left}
.text th,.text td{text-align:left;overflow-wrap:anywhere}.text td:first-child{width:14rem}
tbody tr:hover{background:var(--panel)}
svg{width:100%;height:auto;display:block}svg text{font-family:inherit!important}
summary{cursor:pointer;margin:.6rem 0}
pre{background:var(--panel);border-radius:10px;padding:1rem;overflow-x:auto;font-size:.85rem}
"""
)


def page(title: str, parts: Sequence[str]) -> str:
    """Return a whole page; parts: HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def tile(figure: str, of: str, more: str) -> str:
    """Return a figure in large type, with what it is of and what else to know."""
    spans = f"<span>{escape(of)}</span><span>{escape(more)}</span>"
    return f"<div class=tile><b>{escape(figure)}</b>{spans}</div>"


def soft(text: str) -> str:
    """Return a paragraph in grey."""
    return f'<p class="soft">{escape(text)}</p>'


def table(head: Sequence[str], rows: Rows, kind: str = "") -> str:
    """Return a table; kind: a class of the style, "text" or "steps"."""
    if not rows:
        return soft("Nothing recorded.")
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    inside = f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f'<div class=wide><table class="{kind}">{inside}</table></div>'


def details(title: str, value: Any) -> str:
    """Return plain values as YAML that can be opened; "" for None."""
    if value is None:
        return ""
    return fold(title.capitalize(), f"<pre>{escape(to_yaml(value))}</pre>")


def fold(title: str, content: str) -> str:
    """Return content that can be opened."""
    return f"<details><summary>{title}</summary>{content}</details>"
