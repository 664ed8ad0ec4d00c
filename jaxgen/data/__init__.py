"""From what the user names to batches: readers, built-in and named sets, and per task the batch makers."""

from __future__ import annotations

from jaxgen.data.builtin import BUILTIN
from jaxgen.data.corpus import (
    BATCHES,
    LanguageCorpus,
    Tokens,
    make_batches,
    prepare,
    stream_eval,
    window_eval,
)
from jaxgen.data.language import LanguageConfig, LanguageData
from jaxgen.data.named import NAMED
from jaxgen.data.reader import Source, read_texts

#: The host half of every task, by name: options, reader, report.
DATA = {"language": LanguageData}

__all__ = [
    "BATCHES",
    "BUILTIN",
    "DATA",
    "NAMED",
    "LanguageConfig",
    "LanguageCorpus",
    "LanguageData",
    "Source",
    "Tokens",
    "make_batches",
    "prepare",
    "read_texts",
    "stream_eval",
    "window_eval",
]
