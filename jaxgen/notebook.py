"""HTML of what notebooks show: tables, texts with the probability of each token, and matrices. All text is escaped.

Colours are legible on light and dark pages: a cell has the colours of its text and background, or a background that is
laid over the page and leaves the text to it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from jaxgen.colors import Color, ink_on, probability_color, signed_color, to_hex
from jaxgen.escaping import escape_controls

#: Laid over the page: as far from black as from white, so that text of either colour can be read on it.
SHARE = "rgba(66,120,176,{:.2f})"
#: The most tokens, and the most rows and columns of a matrix, that are shown.
MAX_TOKENS, MAX_CELLS = 5_000, 60
_PLAIN = "text-align:left;white-space:pre-wrap;overflow-wrap:anywhere"


def escape(text: object) -> str:
    """Text for HTML; characters that could change the page or the writing direction are escaped."""
    return html.escape(escape_controls(str(text)))


def page(title: str, parts: Iterable[str]) -> str:
    """An HTML page of ``parts``, which are HTML."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    style = "<style>:root{color-scheme:light dark}body{max-width:60em;margin:2em auto;padding:0 1em}</style>"
    return f'<!doctype html><html lang="en"><head>{head}{style}</head><body>{"<hr>".join(parts)}</body></html>\n'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a line of names."""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>"


def colored_tokens(parts: Sequence[tuple[str, float]], note: str = "") -> str:
    """A text in parts, each with its log-probability in nats, as colours and as tooltips; ``note`` stands below."""
    spans = (_token(text, logp) for text, logp in parts[:MAX_TOKENS])
    scale = (_token(f" {100 * 10.0**power:g} % ", power * math.log(10)) for power in (-3, -2, -1, 0))
    return _colored(spans, "probability of a token", scale, note, len(parts))


def colored_values(parts: Sequence[tuple[str, float]], most: float, what: str) -> str:
    """A text in parts, each with a value, as colours and as tooltips.

    Args:
        parts: The texts and values.
        most: The absolute value of the strongest colours.
        what: What the values are.
    """
    spans = (_part(text, signed_color(value / (most or 1.0)), f"{value:.3g}") for text, value in parts[:MAX_TOKENS])
    scale = (_part(f" {most * share:.2g} ", signed_color(share), "") for share in (-1.0, -0.5, 0.0, 0.5, 1.0))
    return _colored(spans, what, scale, "", len(parts))


def _colored(spans: Iterable[str], what: str, scale: Iterable[str], note: str, number: int) -> str:
    if number > MAX_TOKENS:
        note = f"the first {MAX_TOKENS:,} of {number:,} tokens; {note}".removesuffix("; ")
    return (
        f'<div><div dir="auto" style="{_PLAIN};font-family:monospace;line-height:1.7">{"".join(spans)}</div>'
        f'<div style="text-align:left;font-size:smaller;margin-top:0.5em">{escape(what)}:{"".join(scale)} '
        f"{escape(note)}</div></div>"
    )


def _token(text: str, logp: float) -> str:
    probability = math.exp(min(logp, 0.0))
    return _part(text, probability_color(probability), f"{100 * probability:.3g} %")


def _part(text: str, background: Color, title: str) -> str:
    style = f"background:{to_hex(background)};color:{to_hex(ink_on(background))};white-space:pre-wrap"
    shown = escape(text).replace("\n", "↵\n")
    return f'<span title="{escape(title)}" style="{style}">{shown}</span>'


def matrix(
    shares: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    texts: Sequence[Sequence[str]] | None = None,
    *,
    across: str,
    down: str,
    what: str,
) -> str:
    """A matrix whose cells are darker the larger their share from 0 to 1, which is also their tooltip.

    Args:
        shares: The values of the cells.
        rows: The names of the rows.
        columns: The names of the columns.
        texts: What is written in the cells. Default: nothing.
        across: What the columns are.
        down: What the rows are.
        what: What the shares are.
    """
    left_out = [
        f"{len(names):,} {what}s" for names, what in ((rows, down), (columns, across)) if len(names) > MAX_CELLS
    ]
    rows, columns = rows[:MAX_CELLS], columns[:MAX_CELLS]
    heads = "".join(f'<th style="text-align:center">{escape(name)}</th>' for name in columns)
    lines = []
    for i, name in enumerate(rows):
        cells = "".join(
            f'<td title="{share:.1%}" style="background:{SHARE.format(share)};text-align:center;min-width:1.2em">'
            f"{escape(texts[i][j]) if texts else ''}</td>"
            for j, share in enumerate(list(shares[i])[: len(columns)])
        )
        lines.append(f'<tr style="background:none"><th>{escape(name)}</th>{cells}</tr>')
    corner = f"{escape(down)} ↓ &nbsp; {escape(across)} →"
    scale = "".join(f'<span style="background:{SHARE.format(n / 4)}">&nbsp;{25 * n} %&nbsp;</span>' for n in range(5))
    note = f'<div style="font-size:smaller">{escape(what)}: {scale}</div>'
    note += f"<div>The first {MAX_CELLS} of {escape(' and '.join(left_out))}.</div>" if left_out else ""
    return f"<table><thead><tr><th>{corner}</th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>{note}"
