"""The HTML of a page: text, tables and figures, all escaped, and its head."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from mmattn.evaluate.tables import Cell, Table, cell_text


def table(content: Table) -> str:
    """A table that scrolls in its own box; columns without text are right-aligned."""
    numeric = [
        not any(isinstance(row[place], str) for row in content.rows)
        for place in range(len(content.columns))
    ]
    sides = [' class="number"' if number else "" for number in numeric]
    head = "".join(
        f'<th scope="col"{side}>{escape(name)}</th>'
        for name, side in zip(content.columns, sides, strict=True)
    )
    body = "".join(f"<tr>{_row(row, sides)}</tr>" for row in content.rows)
    title = escape(content.title)
    return (
        f'<figure class="table"><figcaption><strong>{title}</strong> {escape(content.note)}'
        f'</figcaption><div class="scroll" tabindex="0" role="region" aria-label="{title}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></figure>"
    )


def _row(cells: Sequence[Cell], sides: Sequence[str]) -> str:
    first, *rest = (escape(cell_text(cell)) for cell in cells)
    return f'<th scope="row"{sides[0]}>{first}</th>' + "".join(
        f"<td{side}>{text}</td>" for text, side in zip(rest, sides[1:], strict=True)
    )


def paragraphs(texts: Iterable[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def facts(about: Mapping[str, str]) -> str:
    """Names and values, side by side."""
    pairs = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in about.items()
    )
    return f'<dl class="facts">{pairs}</dl>' if about else ""


def section(name: str, title: str, *content: str) -> str:
    """A section that the table of contents links to."""
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">'
        f'<h2 id="{name}-title">{escape(title)}</h2>{"".join(content)}</section>'
    )


def document(
    title: str,
    introduction: str,
    sections: Mapping[str, tuple[str, str]],
    foot: str,
    payload: Mapping[str, Any],
    name: str = "page",
) -> str:
    """The whole page.

    Args:
        title: of the page, as text.
        introduction: HTML under the title.
        sections: by name, the title (text) and content (HTML) of each.
        foot: HTML.
        payload: JSON values that the page's script draws.
        name: page, for the plots; or another script in this package, with its own style, which may
            play files next to the page.

    Its Content-Security-Policy allows only these scripts and nothing from elsewhere, so that the
    page stays offline whatever the names of clips contain.
    """
    here = files("mmattn.report")
    own = name != "page"
    scripts = [*([] if own else [_plotly()]), _text(here / f"{name}.js")]
    style = _text(here / "page.css") + (_text(here / f"{name}.css") if own else "")
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_source, scripts))}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
        + ("; media-src 'self' file:" if own else "")
    )
    links = "".join(
        f'<li><a href="#{name}">{escape(text)}</a></li>' for name, (text, _) in sections.items()
    )
    # A "<" could end the script element.
    data = json.dumps(payload, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{introduction}
<nav aria-label="Contents"><ul>{links}</ul></nav>
</header>
<noscript><p class="note">The plots and players of this page need JavaScript.</p></noscript>
<main>
{"".join(section(name, text, content) for name, (text, content) in sections.items())}
</main>
<footer>{foot}</footer>
<script type="application/json" id="data">{data}</script>
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # imported here: it takes 30 MB

    return get_plotlyjs()


def _text(file: Traversable) -> str:
    return file.read_text(encoding="utf-8")


def _source(script: str) -> str:
    """The name of an inline script in a Content-Security-Policy."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
