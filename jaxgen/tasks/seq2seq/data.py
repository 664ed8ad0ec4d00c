"""What the data of all tasks have in common that write a text for each input: translation and captions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxgen.data.bucketing import PAD_ROW, Buckets, RowBatches, in_batches, padded
from jaxgen.tasks.base import EvalSet, Example, Inference, Metric
from jaxgen.tokenizers.base import EOS, PAD, Tokenizer
from jaxgen.types import Seq2SeqBatch

#: Rows of an evaluation batch at least.
EVAL_ROWS = 32
#: Validation inputs whose texts are written at each evaluation; at the end those of all are.
JUDGED = 1_000
#: Validation inputs that a run shows with what it writes for them.
SHOWN = 3
#: Levels at which a word in the middle of a text and the same at its beginning are other tokens.
SPACED = ("bpe", "word")
#: Characters of a token in a picture, at most.
LABEL = 16


@dataclass(frozen=True)
class Examples:
    """One split: a row for each text to be written.

    Several rows may have one input, as images with several captions have; ``groups[g]`` are the rows of input g.
    """

    inputs: list[Any]  # [N], as the codec's ``lay`` takes them
    raw: list[Any]  # [N], as a user gives them
    names: list[str]  # [N], as a reader sees them
    texts: list[str]  # [N]
    targets: list[np.ndarray]  # [N], their ids
    lengths: np.ndarray  # [N, F], of what is padded in the inputs, and behind it of the target as far as it counts
    groups: list[list[int]]

    def references(self, group: int) -> list[str]:
        """All texts of one input."""
        return [self.texts[row] for row in self.groups[group]]


def encode_target(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids of a text to be written: where tokens hold the space in front of a word, the first one does, too."""
    return tokenizer.encode(" " + text if spaced(tokenizer) else text)


def decode_target(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """The text of ids that a model has written."""
    text = tokenizer.decode(ids)
    return text.removeprefix(" ") if spaced(tokenizer) else text


def spaced(tokenizer: Tokenizer) -> bool:
    """Whether a word in the middle of a text and the same at its beginning are other tokens."""
    return tokenizer.kind in SPACED


def token_label(tokenizer: Tokenizer, token: int) -> str:
    """A token as a short word: white space can be seen, and the middle of what is long is left out."""
    if token == EOS:
        return "<eos>"
    text = tokenizer.decode([token])
    text = text.strip() or "".join({" ": "␣", "\n": "↵", "\t": "⇥"}.get(c, "␣") for c in text)
    half = LABEL // 2
    return text if len(text) <= LABEL else f"{text[: half - 1]}…{text[-half:]}"


class Seq2SeqData(ABC):
    """Base of the data of tasks that write; a subclass gives the inputs, the figures and the pictures."""

    COMMANDS: ClassVar[tuple[str, ...]] = ("predict",)
    METRIC: ClassVar[Metric]
    UNIT: ClassVar[str]
    TARGET: ClassVar[str] = "token"

    config: Any
    codec: Any
    splits: dict[str, Examples]

    @abstractmethod
    def figures(self, texts: Sequence[str], references: Sequence[Sequence[str]], final: bool) -> dict[str, Any]:
        """What written texts are worth beside their references."""

    def scheduled_sampling_prob(self, step: int) -> float:
        """The probability that training reads the model's own prediction at this step."""
        return 0.0

    @cached_property
    def batches(self) -> RowBatches:
        """The training batches, a pure function of (seed, step)."""
        c, train = self.config, self.splits["train"]

        def pack(rows: np.ndarray, widths: tuple[int, ...], step: int) -> Seq2SeqBatch:
            return self._pack(train, rows, widths, self.scheduled_sampling_prob(step))

        return RowBatches(Buckets(train.lengths, c.buckets), c.batch_size, c.seed, pack)

    def _pack(self, split: Examples, rows: np.ndarray, widths: tuple[int, ...], own: float = 0.0) -> Seq2SeqBatch:
        """The batch of these rows; one that is not there has no target."""
        there = [row for row in rows.tolist() if row != PAD_ROW]
        inputs = self.codec.pack([split.inputs[row] for row in there], widths[:-1], rows.size)
        whole = [np.concatenate([[EOS], split.targets[row], [EOS]]) for row in there]
        counts = [int(split.lengths[row, -1]) for row in there]
        nothing = [np.zeros(0, np.int32)] * (rows.size - len(there))
        read, _ = padded([*(ids[:n] for ids, n in zip(whole, counts)), *nothing], widths[-1], PAD)
        written, mask = padded([*(ids[1 : n + 1] for ids, n in zip(whole, counts)), *nothing], widths[-1], PAD)
        return Seq2SeqBatch(inputs, read, written, mask, np.full(rows.size, own, np.float32))

    @property
    def units_per_step(self) -> int:
        """Rows in a batch."""
        return self.config.batch_size

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a batch, read and written, about."""
        return max(1, round(self.config.batch_size * float(self.splits["train"].lengths.sum(axis=1).mean())))

    def resolved(self) -> dict[str, Any]:
        """What a run keeps of the data beside their identity: nothing."""
        return {}

    def eval_sets(self, final: bool) -> dict[str, EvalSet]:
        """``val``, and at the end every other split but ``train``; each row once."""
        rows = max(self.config.batch_size, EVAL_ROWS)
        names = [name for name in self.splits if name != "train"] if final else ["val"]
        return {name: EvalSet(rows, self._evaluation(self.splits[name], rows)) for name in names}

    def _evaluation(self, split: Examples, rows: int) -> Callable[[], Iterator[Seq2SeqBatch]]:
        buckets = Buckets(split.lengths, self.config.buckets)
        return lambda: (self._pack(split, which, buckets.widths[k]) for k, which in in_batches(buckets, rows))

    def report(self, totals: Mapping[str, Any], final: bool = False) -> dict[str, Any]:
        """Loss and share of right tokens of each evaluation, given the text up to each."""
        row: dict[str, Any] = {}
        for name, sums in totals.items():
            count = float(sums.targets)
            row[f"{name}_loss"] = float(sums.nll) / count
            row[f"{name}_token_accuracy"] = float(sums.correct) / count
        return row

    def generation_metrics(self, inference: Inference, final: bool) -> dict[str, Any]:
        """What the model writes beside what it should have: of some validation inputs, at the end of all splits."""
        row: dict[str, Any] = {}
        for name, split in self.splits.items():
            if name == "train" or (name != "val" and not final):
                continue
            there = len(split.groups)
            judged = there if final else min(JUDGED, there)
            groups = [there * i // judged for i in range(judged)]  # from all over the split
            raw = [split.raw[split.groups[g][0]] for g in groups]
            texts = [answer["text"] for answer in inference.predict(raw, beam=self.config.beam if final else 0)]
            found = self.figures(texts, [split.references(g) for g in groups], final)
            row |= {f"{name}_{key}": value for key, value in found.items()}
        return row

    def examples(self, inference: Inference, final: bool) -> list[Example]:
        """Some validation inputs, what the model writes for them, and what is right."""
        val = self.splits["val"]
        groups = range(min(SHOWN, len(val.groups)))
        raw = [val.raw[val.groups[g][0]] for g in groups]
        lines = []
        for g, answer in zip(groups, inference.predict(raw)):
            right, name = val.references(g), val.names[val.groups[g][0]]
            verdict = "exactly right" if answer["text"] in right else f"it is: {right[0]}"
            lines.append(f"{name}\n    -> {answer['text']}\n       ({verdict})")
        return [Example(f"some validation {self.UNIT}", "\n".join(lines))]

    @abstractmethod
    def save_plots(self, inference: Inference, report: Mapping[str, Any], folder: Path) -> None:
        """Pictures of a finished run."""

    def bits_per_char(self, loss: float) -> float | None:
        """Nothing: the loss of a text given its input is no measure of the language."""
        return None
