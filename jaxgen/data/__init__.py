"""From what the user names to batches: readers, built-in and named sets, and per task the batch makers."""

from __future__ import annotations

from typing import Any

from jaxgen.data.builtin import BUILTIN
from jaxgen.data.caption import CaptionConfig, CaptionData
from jaxgen.data.classify import ClassifyConfig, ClassifyData
from jaxgen.data.corpus import (
    BATCHES,
    LanguageCorpus,
    Tokens,
    make_batches,
    prepare,
    stream_eval,
    window_eval,
)
from jaxgen.data.language import LanguageData
from jaxgen.data.language_config import LanguageConfig
from jaxgen.data.named import NAMED
from jaxgen.data.reader import Source, read_texts
from jaxgen.data.translate import TranslateConfig, TranslateData

#: The host half of every task, by name: options, reader, report.
DATA: dict[str, Any] = {
    "caption": CaptionData,
    "classify": ClassifyData,
    "language": LanguageData,
    "translate": TranslateData,
}

__all__ = [
    "BATCHES",
    "BUILTIN",
    "DATA",
    "NAMED",
    "CaptionConfig",
    "ClassifyConfig",
    "LanguageConfig",
    "LanguageCorpus",
    "LanguageData",
    "Source",
    "Tokens",
    "TranslateConfig",
    "make_batches",
    "prepare",
    "read_texts",
    "stream_eval",
    "window_eval",
]
