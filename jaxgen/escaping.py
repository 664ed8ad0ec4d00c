"""Everything that is shown of models, data and files passes through here."""

from __future__ import annotations

import unicodedata

#: Line and paragraph separators, and characters that change the writing direction.
_UNSAFE = frozenset("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def escape_controls(text: str) -> str:
    """Text with escapes for characters that could control a terminal; line breaks and tabs are kept."""
    return "".join(repr(c)[1:-1] if _is_unsafe(c) else c for c in text.replace("\r\n", "\n"))


def _is_unsafe(c: str) -> bool:
    return c not in "\n\t" and (c in _UNSAFE or unicodedata.category(c) in ("Cc", "Cs", "Cn"))
