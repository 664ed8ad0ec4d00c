"""What counts as the beginning of a text, a line end and a word: the reading policy, which a run records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import regex
from pydantic import ConfigDict

from jaxgen.fsutil import StrictModel

#: A text, or the pieces it consists of.
Text = str | Iterable[str]

_BOM = "\ufeff"
_LINE_WITH_END = regex.compile(r"[^\r\n]*(?:\r\n|\r|\n)")


class Reading(StrictModel):
    """How a run reads text. It is recorded in ``config.json``; prompts and scored texts are read in the same way.

    ``bom``: whether a byte order mark at the beginning of a text is dropped. ``newlines``: whether CR LF and lone CR
    become LF. ``words``: the rule by which words are split.
    """

    bom: Literal["drop", "keep"]
    newlines: Literal["lf", "keep"]
    words: Literal["unicode"]

    model_config = ConfigDict(frozen=True)

    @classmethod
    def of_level(cls, level: str, newlines: Literal["lf", "keep"] | None = None) -> Reading:
        """Returns how language text of a level is read; at byte level, unchanged by default."""
        if level == "byte":
            return cls(bom="keep", newlines=newlines or "keep", words="unicode")
        return cls(bom="drop", newlines=newlines or "lf", words="unicode")

    def pieces(self, text: Text) -> Iterator[str]:
        """Yields a text, given whole or in pieces, as it is read; a CR LF between two pieces is one line end."""
        begun, held = False, ""
        for piece in in_pieces(text):
            if not begun and piece and self.bom == "drop":
                piece = piece.removeprefix(_BOM)
                begun = True
            if self.newlines == "lf":
                piece = held + piece
                held = "\r" if piece.endswith("\r") else ""
                piece = as_lf(piece.removesuffix("\r"))
            if piece:
                yield piece
        if held:
            yield "\n"

    def text(self, text: str) -> str:
        """Returns a text as it is read."""
        return "".join(self.pieces(text))


#: Letters, numbers and the underscore; what may follow one in a word: also combining marks and the (non-)joiners.
WORD_START = r"\p{L}\p{N}_"
WORD_CHARACTERS = rf"{WORD_START}\p{{M}}\u200c\u200d"
#: A word, with apostrophes inside. A character set on either side of a repetition never matches the first character of
#: what may follow it, so matching does not backtrack.
WORD = regex.compile(rf"[{WORD_START}][{WORD_CHARACTERS}]*+(?:['’][{WORD_START}][{WORD_CHARACTERS}]*+)*+")

#: How text is read by default, and always where a line or a row is the unit.
STANDARD = Reading(bom="drop", newlines="lf", words="unicode")
#: How the files of tables are read: line ends in quoted fields may be kept.
KEEP_NEWLINES = STANDARD.model_copy(update={"newlines": "keep"})


def in_pieces(text: Text) -> Iterable[str]:
    """Returns the pieces of a text; a string is a single piece."""
    return (text,) if isinstance(text, str) else text


def count_words(text: str, last: str = "") -> int:
    """Returns the number of words that begin in a text, as the literature counts them for perplexities.

    A word is what stands between white space, or a line end (``<eos>``). ``last`` is the character before the text.
    """
    continued = bool(last) and not last.isspace() and not text[:1].isspace()
    return len(text.split()) + text.count("\n") - (continued and text != "")


def as_lf(text: str) -> str:
    """Returns a text in which CR LF and lone CR are LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def whole_lines(text: Text) -> Iterator[str]:
    """Returns the lines of a text, given whole or in pieces; they end at LF, CR LF or CR.

    As with ``split("\\n")``, an empty line follows a line end at the end of the text.
    """
    return _lf_lines(_ONLY_LF.pieces(text))


def lines_with_ends(text: Text) -> Iterator[str]:
    """Yields the lines of ``whole_lines`` with their ends; the last one always has one."""
    for line in _lf_lines(text):
        if "\r" in line:
            yield from _LINE_WITH_END.findall(f"{line}\n")
        else:
            yield f"{line}\n"


def _lf_lines(text: Text) -> Iterator[str]:
    """Yields what ``split("\\n")`` returns for a text in pieces."""
    rest: list[str] = []
    for piece in in_pieces(text):
        *lines, last = piece.split("\n")
        for line in lines:
            yield "".join([*rest, line])
            rest = []
        rest.append(last)
    yield "".join(rest)


_ONLY_LF = STANDARD.model_copy(update={"bom": "keep"})
