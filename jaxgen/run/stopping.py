"""Where a text ends: stop strings in text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Finds the first of some strings in a text, however the text is cut into pieces.

    What could be the beginning of one is held back until it is decided. The first to be complete counts, and of those
    complete at the same place the longest.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Some more text: returns what is certain to belong to the text, and the string found, if any."""
        text = self._held + text
        found = [(text.find(s) + len(s), -len(s), s) for s in self._strings if s in text]
        if found:
            end, _, string = min(found)
            self._held = ""
            return text[: end - len(string)], string
        held = max((self._overlap(text, s) for s in self._strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], None

    @property
    def held(self) -> int:
        """How many characters are held back."""
        return len(self._held)

    def flush(self) -> str:
        """What was held back, once there is no more text."""
        rest, self._held = self._held, ""
        return rest

    @staticmethod
    def _overlap(text: str, string: str) -> int:
        """How much of the end of ``text`` is a beginning of ``string``."""
        longest = min(len(text), len(string) - 1)
        return next((n for n in range(longest, 0, -1) if string.startswith(text[len(text) - n :])), 0)
