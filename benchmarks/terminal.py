"""Draw the animated terminal of README.md: what a command prints, token by token, in its colours.

    python -m benchmarks.terminal

Writes ``docs/pictures/terminal.svg``. Viewers that show no animation, and people who want none, see the whole text.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from itertools import count

from rich.console import Console
from rich.text import Text

from benchmarks.machine import ROOT
from jaxgen.fsutil import replace_file

PICTURE = ROOT / "docs" / "pictures" / "terminal.svg"
COMMAND = "jaxgen sample --run pretrained:shakespeare --prompt ROMEO: --seed 5 --color always"
WIDTH = 78
#: Seconds before the first token, and between tokens.
START, PACE = 1.0, 0.02
#: What Rich fills in; its own form loads a font from the network.
FORM = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<title>A text of jaxgen's sampler, each character in the colour of its probability</title>
<style>
.{unique_id}-matrix {{ font: {char_height}px Menlo, 'DejaVu Sans Mono', Consolas, monospace }}
.{unique_id}-title {{ font: 18px Arial, Helvetica, sans-serif }}
@keyframes appear {{ from {{ opacity: 0 }} to {{ opacity: 1 }} }}
.drawn {{ animation: appear 1ms both }}
@media (prefers-reduced-motion: reduce) {{ .drawn {{ animation: none }} }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def output_of(command: str) -> str:
    """What a command of jaxgen prints on its standard output."""
    words = [sys.executable, "-m", *shlex.split(command)]
    return subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def draw(command: str, printed: str) -> str:
    """An SVG picture of a terminal in which ``command`` has ``printed`` a text with colours."""
    console = Console(
        record=True,
        width=WIDTH,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
    )
    console.print(Text("$ " + command.removesuffix(" --color always") + " --color", style="bold"))
    console.print(Text.from_ansi(printed))
    picture = console.export_svg(title="jaxgen", code_format=FORM, unique_id="terminal")
    number = count()

    def appear(match: re.Match[str]) -> str:
        return f'<text style="animation-delay: {START + PACE * next(number):.2f}s" class="drawn {match[1]}'

    head, mark, body = picture.partition('<g class="terminal-matrix">')
    first, *others = body.split("</text>")
    return head + mark + first + "</text>" + re.sub(r'<text class="([^"]*)', appear, "</text>".join(others))


def main() -> None:
    replace_file(PICTURE, draw(COMMAND, output_of(COMMAND)).encode())


if __name__ == "__main__":
    main()
