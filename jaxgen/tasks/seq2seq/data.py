"""The shared part of tasks that write a text for each input: settings, codecs, batches and reports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxgen.data.bucketing import PAD_ROW, pad_rows
from jaxgen.errors import counted
from jaxgen.runs.config import Beam, Fraction
from jaxgen.runs.groups import Group
from jaxgen.tasks.base import MAX_COUNTED, Example, Inference
from jaxgen.tasks.rows import SPACED_LEVELS, RowsConfig, RowsData, normalize
from jaxgen.tokenizers.base import EOS, PAD, Tokenizer
from jaxgen.types import Seq2SeqBatch

#: Most validation inputs decoded by an evaluation during training; the final one decodes all of them.
MAX_DECODED = 1_000
#: Validation inputs shown as examples, and inputs in the plot of attention.
NUM_EXAMPLES, ATTENTION_INPUTS = 3, 2
#: Longest label of a token in a plot, in characters.
MAX_TOKEN_LABEL = 16


class Seq2SeqConfig(RowsConfig):
    """Settings of tasks that write a text for each input."""

    in_model: ClassVar[Group] = Group("Model")
    attention: str = "general"
    """Attention of the decoder over the input: none (it sees only a summary of the input), additive (Bahdanau) or
    general (Luong, the fastest)."""
    token_dropout: Fraction = 0.0
    """Share of the decoder's input tokens replaced by <unk> in training, so that it relies more on the input."""

    in_training: ClassVar[Group] = Group("Training")
    label_smoothing: Fraction = 0.0
    """Share of each training target spread evenly over the vocabulary."""
    beam: Beam = 5
    """Beams of the final evaluation; 0: greedy decoding, as during training."""


class TextWriter(ABC):
    """Decodes text outputs: the shared part of the codecs of tasks that write texts."""

    max_length: int

    @property
    @abstractmethod
    def output_tokenizer(self) -> Tokenizer:
        """The tokenizer of the outputs."""

    @property
    def longest(self) -> int:
        """Most tokens to generate by default: no training text was longer."""
        return self.max_length

    def encode_target(self, text: str) -> np.ndarray:
        """Encodes a text of any length that the model is to write."""
        return self.output_tokenizer.encode(normalize(text, self.output_tokenizer.kind))

    def written_text(self, output: Any) -> dict[str, Any]:
        """Returns a text with its log-probability in nats, its number of tokens, and whether it ended."""
        text = self.output_tokenizer.decode(output.tokens)
        return {
            "text": text.removeprefix(" ") if self.output_tokenizer.kind in SPACED_LEVELS else text,
            "logp": round(float(output.logp), 6),
            "tokens": int(output.tokens.size),
            "ended": bool(output.ended),
        }

    def written(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Returns labels of the tokens of a text and of its end."""
        return [token_label(self.output_tokenizer, i) for i in [*ids, EOS]]


def token_label(tokenizer: Tokenizer, token: int) -> str:
    """Returns a short label of a token for plots, with visible white space."""
    if token == EOS:
        return "<eos>"
    text = tokenizer.decode([token])
    text = text.strip() or "".join({" ": "␣", "\n": "↵", "\t": "⇥"}.get(c, "␣") for c in text)
    half = MAX_TOKEN_LABEL // 2
    return text if len(text) <= MAX_TOKEN_LABEL else f"{text[: half - 1]}…{text[-half:]}"


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
    lengths: np.ndarray  # [N, F], of the padded axes of the input, then of the target
    groups: list[list[int]]
    too_long: int  # how many texts were left out

    def __len__(self) -> int:
        return len(self.groups)

    def references(self, group: int) -> list[str]:
        """Returns all target texts of one input."""
        return [self.texts[row] for row in self.groups[group]]

    def raw_inputs(self, groups: Sequence[int]) -> list[Any]:
        """Returns the inputs of some groups, as a user gives them."""
        return [self.raw[self.groups[g][0]] for g in groups]


class Seq2SeqData(RowsData):
    """Base class of the data of tasks that write texts; subclasses add the inputs and the metrics."""

    TARGET: ClassVar[str] = "token"

    @cached_property
    def splits(self) -> dict[str, Examples]:
        return {name: self.encoded(rows, leave_out=name == "train") for name, rows in self.raw.splits.items()}

    @abstractmethod
    def encoded(self, rows: Any, leave_out: bool) -> Examples:
        """Encodes the rows of a split; with ``leave_out``, drops those that are too long."""

    @abstractmethod
    def text_metrics(self, texts: Sequence[str], references: Sequence[Sequence[str]], final: bool) -> dict[str, Any]:
        """Returns the metrics of decoded texts against their references, ``exact`` among them."""

    @abstractmethod
    def metrics_lines(self, metrics: Mapping[str, Any]) -> list[str]:
        """Returns the metrics of one split as lines."""

    def scheduled_sampling_prob(self, step: int) -> float:
        """The probability that training reads the model's own prediction at this step."""
        return 0.0

    def pack(self, split: Examples, rows: np.ndarray, widths: tuple[int, ...], step: int | None = None) -> Seq2SeqBatch:
        """Returns the batch of these rows; a row of padding has no targets."""
        present = [row for row in rows.tolist() if row != PAD_ROW]
        inputs = self.codec.pack([split.inputs[row] for row in present], widths[:-1], rows.size)
        whole = [np.concatenate([[EOS], split.targets[row], [EOS]]) for row in present]
        counts = [int(split.lengths[row, -1]) for row in present]
        empty = [np.zeros(0, np.int32)] * (rows.size - len(present))
        tokens, _ = pad_rows([*(ids[:n] for ids, n in zip(whole, counts)), *empty], widths[-1], PAD)
        targets, mask = pad_rows([*(ids[1 : n + 1] for ids, n in zip(whole, counts)), *empty], widths[-1], PAD)
        prob = 0.0 if step is None else self.scheduled_sampling_prob(step)
        return Seq2SeqBatch(inputs, tokens, targets, mask, np.full(rows.size, prob, np.float32))

    def notes(self) -> list[str]:
        too_long, most = self.splits["train"].too_long, self.config.max_length
        left_out = f"{counted(too_long, 'text')} longer than {most:,} tokens left out of training"
        return [*super().notes(), *([left_out] if too_long else [])]

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
            count = len(split) if final else min(MAX_DECODED, len(split))
            groups = [len(split) * i // count for i in range(count)]  # evenly spaced over the split
            answers = inference.predict(split.raw_inputs(groups), beam=self.config.beam if final else 0)
            texts = [answer["text"] for answer in answers]
            found = self.text_metrics(texts, [split.references(g) for g in groups], final)
            row |= {f"{name}_{key}": value for key, value in found.items()}
        return row

    @property
    def num_targets(self) -> int:
        return int(self.codec.output_tokenizer.vocab_size)

    def target_ids(self, split: str) -> np.ndarray:
        texts = self.splits[split].targets[: MAX_COUNTED // self.config.max_length]
        return np.concatenate([np.append(ids, EOS) for ids in texts])

    @property
    def final_generation_share(self) -> float:
        count = sum(len(split) for name, split in self.splits.items() if name != "train")
        return max(1, self.config.beam) * count / min(MAX_DECODED, len(self.splits["val"]))

    def examples(self, inference: Inference, final: bool) -> list[Example]:
        """Returns some validation inputs with the model's texts and the references."""
        val = self.splits["val"]
        groups = range(min(NUM_EXAMPLES, len(val)))
        lines = []
        for g, answer in zip(groups, inference.predict(val.raw_inputs(groups))):
            references, name = val.references(g), val.names[val.groups[g][0]]
            verdict = "exactly right" if answer["text"] in references else f"it is: {references[0]}"
            lines.append(f"{name}\n    -> {answer['text']}\n       ({verdict})")
        return [Example(f"some validation {self.UNIT}", "\n".join(lines))]

    def save_plots(self, inference: Inference, report: Mapping[str, Any], folder: Path) -> None:
        """Saves ``attention.png``: the attention weights for some validation inputs."""
        if self.config.attention == "none":
            return
        from jaxgen.plots import draw_attention

        val = self.splits["val"]
        groups = range(min(ATTENTION_INPUTS, len(val)))
        maps = [
            inference.attention(source).with_text("reference", val.references(g)[0])
            for g, source in zip(groups, val.raw_inputs(groups))
        ]
        draw_attention(maps, folder / "attention.png")

    def report_lines(self, report: Mapping[str, Any]) -> list[tuple[str, str]]:
        lines = []
        for name in self.splits:
            prefix = f"{name}_"
            metrics = {key.removeprefix(prefix): value for key, value in report.items() if key.startswith(prefix)}
            if "exact" in metrics:
                first, *more = self.metrics_lines(metrics)
                lines.append(("validation" if name == "val" else name.replace("_", " "), first))
                lines += [("", line) for line in more]
        return lines
