"""The data shared by the tasks that write a text for each input: translate and caption."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxgen.data.bucketing import PAD_ROW, Buckets, RowBatches, bucket_batches, pad_rows
from jaxgen.tasks.base import EvalSet, Example, Inference, Metric
from jaxgen.tokenizers.base import EOS, PAD, Tokenizer
from jaxgen.types import Seq2SeqBatch

#: Smallest number of rows of an evaluation batch.
EVAL_ROWS = 32
#: Most validation inputs decoded at an evaluation during training; at the end all of them are.
MAX_DECODED = 1_000
#: Validation inputs shown as examples.
NUM_EXAMPLES = 3
#: Levels whose tokens include the space in front of a word.
SPACED_LEVELS = ("bpe", "word")
#: Longest label of a token in a plot, in characters.
MAX_TOKEN_LABEL = 16


@dataclass(frozen=True)
class Examples:
    """One split: a row for each target text.

    Several rows may share an input, such as an image with several captions: ``groups[g]`` are the rows of input g.
    """

    inputs: list[Any]  # [N], as the codec's ``encode`` returns them
    raw: list[Any]  # [N], as a user gives them
    names: list[str]  # [N], as they are shown
    texts: list[str]  # [N]
    targets: list[np.ndarray]  # [N], the token ids of the texts
    lengths: np.ndarray  # [N, F], of the pad_rows axes of the input, then of the target
    groups: list[list[int]]

    def references(self, group: int) -> list[str]:
        """Returns all target texts of one input."""
        return [self.texts[row] for row in self.groups[group]]


def encode_target(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Returns the ids of a target text; where tokens include the space in front of a word, the first one does too."""
    return tokenizer.encode(" " + text if spaced(tokenizer) else text)


def decode_target(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """Returns the text of ids that a model wrote: the inverse of ``encode_target``."""
    text = tokenizer.decode(ids)
    return text.removeprefix(" ") if spaced(tokenizer) else text


def spaced(tokenizer: Tokenizer) -> bool:
    """Whether tokens include the space in front of a word."""
    return tokenizer.kind in SPACED_LEVELS


def token_label(tokenizer: Tokenizer, token: int) -> str:
    """Returns a short label of a token for plots, with visible white space."""
    if token == EOS:
        return "<eos>"
    text = tokenizer.decode([token])
    text = text.strip() or "".join({" ": "␣", "\n": "↵", "\t": "⇥"}.get(c, "␣") for c in text)
    half = MAX_TOKEN_LABEL // 2
    return text if len(text) <= MAX_TOKEN_LABEL else f"{text[: half - 1]}…{text[-half:]}"


class Seq2SeqData(ABC):
    """Base class of the data of tasks that write texts; subclasses add the inputs, the metrics and the plots."""

    COMMANDS: ClassVar[tuple[str, ...]] = ("predict",)
    METRIC: ClassVar[Metric]
    UNIT: ClassVar[str]
    TARGET: ClassVar[str] = "token"

    config: Any
    codec: Any
    splits: dict[str, Examples]

    @abstractmethod
    def text_metrics(self, texts: Sequence[str], references: Sequence[Sequence[str]], final: bool) -> dict[str, Any]:
        """Returns the metrics of decoded texts against their references."""

    def scheduled_sampling_prob(self, step: int) -> float:
        """The probability that training reads the model's own prediction at this step."""
        return 0.0

    @cached_property
    def batches(self) -> RowBatches:
        """The training batches."""
        c, train = self.config, self.splits["train"]

        def pack(rows: np.ndarray, widths: tuple[int, ...], step: int) -> Seq2SeqBatch:
            return self._pack(train, rows, widths, self.scheduled_sampling_prob(step))

        return RowBatches(Buckets(train.lengths, c.buckets), c.batch_size, c.seed, pack)

    def _pack(self, split: Examples, rows: np.ndarray, widths: tuple[int, ...], own: float = 0.0) -> Seq2SeqBatch:
        """Returns the batch of these rows; a row of padding has no targets."""
        present = [row for row in rows.tolist() if row != PAD_ROW]
        inputs = self.codec.pack([split.inputs[row] for row in present], widths[:-1], rows.size)
        whole = [np.concatenate([[EOS], split.targets[row], [EOS]]) for row in present]
        counts = [int(split.lengths[row, -1]) for row in present]
        empty = [np.zeros(0, np.int32)] * (rows.size - len(present))
        tokens, _ = pad_rows([*(ids[:n] for ids, n in zip(whole, counts)), *empty], widths[-1], PAD)
        targets, mask = pad_rows([*(ids[1 : n + 1] for ids, n in zip(whole, counts)), *empty], widths[-1], PAD)
        return Seq2SeqBatch(inputs, tokens, targets, mask, np.full(rows.size, own, np.float32))

    @property
    def units_per_step(self) -> int:
        """Number of rows in a batch."""
        return self.config.batch_size

    @property
    def tokens_per_step(self) -> int:
        """Average number of tokens in a batch, of inputs and targets."""
        return max(1, round(self.config.batch_size * float(self.splits["train"].lengths.sum(axis=1).mean())))

    def resolved(self) -> dict[str, Any]:
        """Nothing besides the fingerprint."""
        return {}

    def eval_sets(self, final: bool) -> dict[str, EvalSet]:
        """Returns ``val``, and at the end all other splits except ``train``."""
        rows = max(self.config.batch_size, EVAL_ROWS)
        names = [name for name in self.splits if name != "train"] if final else ["val"]
        return {name: EvalSet(rows, self._evaluation(self.splits[name], rows)) for name in names}

    def _evaluation(self, split: Examples, rows: int) -> Callable[[], Iterator[Seq2SeqBatch]]:
        buckets = Buckets(split.lengths, self.config.buckets)
        return lambda: (self._pack(split, which, buckets.widths[k]) for k, which in bucket_batches(buckets, rows))

    def report(self, totals: Mapping[str, Any], final: bool = False) -> dict[str, Any]:
        """Returns the loss and the token accuracy of each evaluation, with teacher forcing."""
        row: dict[str, Any] = {}
        for name, sums in totals.items():
            count = float(sums.targets)
            row[f"{name}_loss"] = float(sums.nll) / count
            row[f"{name}_token_accuracy"] = float(sums.correct) / count
        return row

    def generation_metrics(self, inference: Inference, final: bool) -> dict[str, Any]:
        """Decodes some validation inputs, at the end all splits, and returns the metrics of the texts."""
        row: dict[str, Any] = {}
        for name, split in self.splits.items():
            if name == "train" or (name != "val" and not final):
                continue
            total = len(split.groups)
            count = total if final else min(MAX_DECODED, total)
            groups = [total * i // count for i in range(count)]  # evenly spaced over the split
            raw = [split.raw[split.groups[g][0]] for g in groups]
            texts = [answer["text"] for answer in inference.predict(raw, beam=self.config.beam if final else 0)]
            found = self.text_metrics(texts, [split.references(g) for g in groups], final)
            row |= {f"{name}_{key}": value for key, value in found.items()}
        return row

    def examples(self, inference: Inference, final: bool) -> list[Example]:
        """Returns some validation inputs with the model's texts and the references."""
        val = self.splits["val"]
        groups = range(min(NUM_EXAMPLES, len(val.groups)))
        raw = [val.raw[val.groups[g][0]] for g in groups]
        lines = []
        for g, answer in zip(groups, inference.predict(raw)):
            references, name = val.references(g), val.names[val.groups[g][0]]
            verdict = "exactly right" if answer["text"] in references else f"it is: {references[0]}"
            lines.append(f"{name}\n    -> {answer['text']}\n       ({verdict})")
        return [Example(f"some validation {self.UNIT}", "\n".join(lines))]

    @abstractmethod
    def save_plots(self, inference: Inference, report: Mapping[str, Any], folder: Path) -> None:
        """Saves the plots of a finished run."""

    def bits_per_char(self, loss: float) -> float | None:
        """None: the loss of a text given its input has no such meaning."""
        return None
