"""Quality and diversity of texts drawn at several temperatures, compared with the same amount of real text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from jaxgen import metrics
from jaxgen.errors import UsageError, check_int
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Scorer
from jaxgen.inference.text_stream import Sample
from jaxgen.tasks.language.conditioning import Condition, conditions_of
from jaxgen.text import WORD
from jaxgen.tokenizers.base import EOS, UNK, text_bytes

SPACE = re.compile(r"\s")


@dataclass(frozen=True)
class ReferenceData:
    """The training and validation texts of a run: documents, or one running text each.

    ``conditions`` are those of the validation texts, if the run has labels or features.
    """

    train: list[str]
    val: list[str]
    conditions: list[Condition] | None = None

    @classmethod
    def of_run(cls, saved: LoadedRun) -> ReferenceData:
        """Read the data of a run again. Raises ``DataError`` if it is missing or has changed."""
        splits = saved.texts()
        conditions = None if splits.val_known is None else conditions_of(splits.val_known)
        train, val = splits.whole()
        return cls(_as_decoded(train), _as_decoded(val), conditions)

    @cached_property
    def words(self) -> frozenset[str]:
        """The words of the training text."""
        return frozenset(match[0] for text in self.train for match in WORD.finditer(text))


@dataclass(frozen=True)
class CopiedSpan:
    """The longest span of some texts that occurs in the training text.

    It has ``length`` characters. It starts at character ``start`` of sample number ``sample``, and at character
    ``source_start`` of training text number ``source``, all counted from 0.
    """

    text: str
    length: int
    sample: int
    start: int
    source: int
    source_start: int


@dataclass(frozen=True)
class QualityRow:
    """The metrics of some texts. A metric that cannot be computed is ``None``.

    Attributes:
        temperature: The temperature they were drawn at; ``None`` for real text.
        texts, tokens, characters: How many there are.
        logp: The mean log-likelihood per token in nats, before temperature.
        distinct: distinct-1, distinct-2 and distinct-3.
        seq_rep_4: The share of 4-grams that occurred earlier in the same text.
        cycles: The number of texts that end in a cycle.
        cycle: The cycle of the first of them, in tokens.
        cycle_text: The text that it repeats.
        known_words: The share of words that occur in the training text.
        copy: The longest span copied from the training text.
    """

    temperature: float | None
    texts: int
    tokens: int
    characters: int
    logp: float | None
    distinct: tuple[float | None, ...]
    seq_rep_4: float | None
    cycles: int
    cycle: metrics.Cycle | None
    cycle_text: str | None
    known_words: float | None
    copy: CopiedSpan | None

    @property
    def shares(self) -> tuple[float | None, ...]:
        """All metrics that are shares: distinct-n, repeated 4-grams, cycles and known words."""
        return (*self.distinct, self.seq_rep_4, self.cycles / self.texts, self.known_words)

    def distance(self, real: QualityRow) -> float:
        """The mean difference from the shares of real text; a share that cannot be computed differs by 1."""
        pairs = [(a, b) for a, b in zip(self.shares, real.shares) if b is not None]
        return sum(1.0 if a is None else abs(a - b) for a, b in pairs) / len(pairs)


@dataclass(frozen=True)
class QualityReport:
    """The metrics of a sweep of temperatures.

    Attributes:
        rows: One for each temperature, in the order given.
        validation: The row of validation text.
        unit: The unit of n-grams: ``word`` or ``character``.
        drawn: How many texts were drawn under each condition at each temperature; empty without labels and features.
    """

    rows: list[QualityRow]
    validation: QualityRow | None
    unit: str
    drawn: list[tuple[Condition, int]] = field(default_factory=list)

    @property
    def nearest(self) -> QualityRow | None:
        """The row whose shares are nearest to those of validation text; ``None`` without it."""
        real = self.validation
        return None if real is None else min(self.rows, key=lambda row: row.distance(real), default=None)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        rows = [_row_json(row) for row in self.rows]
        drawn = [{**condition.to_json(), "texts": number} for condition, number in self.drawn]
        return {
            **({"conditions": drawn} if drawn else {}),
            "unit": self.unit,
            "rows": rows,
            "validation": None if self.validation is None else _row_json(self.validation),
            "nearest_temperature": None if self.nearest is None else self.nearest.temperature,
        }


def evaluate_samples(
    sampler: Sampler,
    temperatures: Sequence[float],
    settings: GenerationConfig | None = None,
    *,
    prompt: str = "",
    num_samples: int = 20,
    reference: ReferenceData | None = None,
    unk: str = "error",
) -> QualityReport:
    """Draw texts at several temperatures and measure them.

    n-grams are of words where the text has spaces between them, otherwise of characters.

    For a run with labels or features, the texts are drawn under the conditions of as many validation texts, evenly
    spread. If ``sampler`` has a condition, all are drawn under that one and compared with validation texts under it.
    Validation text is always measured under its own condition.

    Args:
        sampler: The model.
        temperatures: The temperatures. At 0 only one text is drawn, and counted ``num_samples`` times.
        settings: The other settings of sampling.
        prompt: The text to continue; it is not measured.
        num_samples: Texts at each temperature.
        reference: The data of the run. Without it there is no row of validation text, and metrics that compare with
            the training text are ``None``.
        unk: What to do with prompt characters that are not in the vocabulary: ``error`` or ``skip``.

    Raises:
        UsageError: A value is out of range. Nothing was compiled.
    """
    settings = settings or GenerationConfig()
    check_int("The length of the texts", settings.length, 1)
    sweep = [replace(settings, temperature=temperature) for temperature in temperatures]
    shares = allocate(sampler, num_samples, reference)
    streams = [
        [
            each.samples(prompt, how, num_samples=1 if how.greedy else len(numbers), first=numbers.start, unk=unk)
            for each, numbers in shares
        ]
        for how in sweep
    ]  # arguments are checked here, texts are drawn below
    drawn: list[list[Sample]] = [[] for _ in sweep]
    for how, parts, samples in zip(sweep, streams, drawn):
        for (_, numbers), part in zip(shares, parts):
            samples += list(part) * (len(numbers) if how.greedy else 1)
    every = [sample for samples in drawn for sample in samples]
    unit = metrics.natural_unit(reference.train if reference else (s.text for s in every))
    references, copies = [], None
    if reference is not None:
        size = settings.length * sum(len(s.text) for s in every) / max(sum(s.tokens.size for s in every), 1)
        references = cut_references(
            reference.val,
            num_samples,
            max(1, round(size)),
            documents=sampler.documents,
            conditions=reference.conditions,
            only=sampler.condition,
        )
        texts = [s.text for s in every] + [each.text for each in references]
        copies = copies_of(texts, reference.train)
    measure = SampleMetrics(sampler, unit, reference, copies)
    rows = [measure.of_samples(each, samples, prompt) for each, samples in zip(temperatures, drawn)]
    given = [] if sampler.conditioning is None else [(each.condition or Condition(), len(n)) for each, n in shares]
    return QualityReport(rows, measure.of_references(references) if references else None, unit, given)


def allocate(sampler: Sampler, number: int, reference: ReferenceData | None) -> list[tuple[Sampler, range]]:
    """Distribute ``number`` samples over conditions, as ``evaluate_samples`` describes.

    Returns:
        A sampler for each condition, with the numbers of the samples that it draws.

    Raises:
        UsageError: The conditions of the validation texts are needed and not available.
    """
    if sampler.conditioning is None or sampler.condition is not None:
        return [(sampler, range(number))]
    if reference is None or not reference.conditions:
        raise UsageError(
            "Texts are drawn with the labels and features of validation texts, which are not available: "
            "choose a condition with --label or --features."
        )
    counts = Counter(reference.conditions[i] for i in spread(number, len(reference.conditions)))
    shares, first = [], 0
    for condition, count in counts.items():
        shares.append((sampler.with_condition(condition), range(first, first + count)))
        first += count
    return shares


def spread(count: int, among: int) -> list[int]:
    """``count`` evenly spread numbers from 0 to ``among`` - 1."""
    return [i * among // count for i in range(count)]


@dataclass(frozen=True)
class ReferenceText:
    """A piece of real text. ``cut``: the text continues after it."""

    text: str
    cut: bool
    condition: Condition | None = None


def cut_references(
    texts: Sequence[str],
    count: int,
    size: int,
    *,
    documents: bool = False,
    conditions: Sequence[Condition] | None = None,
    only: Condition | None = None,
) -> list[ReferenceText]:
    """Up to ``count`` evenly spread pieces of real text, which do not overlap.

    Args:
        texts: Documents, or parts of one running text.
        count: The number of pieces.
        size: The largest number of characters of a piece.
        documents: Take the beginnings of documents. Pieces of running text begin after white space.
        conditions: Those of the documents.
        only: Take only documents under this condition.
    """
    if documents:
        under: Sequence[Condition | None] = conditions or [None] * len(texts)
        kept = [(text, condition) for text, condition in zip(texts, under) if only is None or condition == only]
        chosen = [kept[i] for i in spread(min(count, len(kept)), len(kept))]
        return [ReferenceText(text[:size], len(text) > size, condition) for text, condition in chosen]
    text = "".join(texts)
    count = min(count, max(len(text) // size, 1 if text else 0))
    pieces = []
    for i in range(count):
        begin, end = (len(text) * j // count for j in (i, i + 1))
        space = SPACE.search(text, begin, end - 1)
        begin = space.end() if space else begin
        end = min(begin + size, end)
        pieces.append(ReferenceText(text[begin:end], end < len(text)))
    return pieces


@dataclass(frozen=True)
class SampleMetrics:
    """Computes the metrics of texts.

    ``copies`` holds the longest copied span of each text, if there is a reference.
    """

    sampler: Sampler
    unit: str
    reference: ReferenceData | None
    copies: Mapping[str, metrics.Span] | None

    def of_samples(self, temperature: float, samples: Sequence[Sample], prompt: str) -> QualityRow:
        """The metrics of drawn texts."""
        sequences = [metrics.units(s.text, self.unit, before=prompt, cut=s.end in ("length", "time")) for s in samples]
        logp = np.concatenate([s.logp for s in samples])
        return self._row(temperature, [s.text for s in samples], [s.tokens for s in samples], sequences, _mean(logp))

    def of_references(self, references: Sequence[ReferenceText]) -> QualityRow:
        """The metrics of real texts."""
        sequences = [metrics.units(each.text, self.unit, cut=each.cut) for each in references]
        tokens = [self.sampler.tokenizer.encode(each.text) for each in references]
        if self.sampler.documents:
            tokens = [ids if each.cut else np.append(ids, np.int32(EOS)) for ids, each in zip(tokens, references)]
        logp = mean_logp(self.sampler, references)
        return self._row(None, [each.text for each in references], tokens, sequences, logp)

    def _row(
        self,
        temperature: float | None,
        texts: list[str],
        tokens: list[np.ndarray],
        sequences: list[list[str]],
        logp: float | None,
    ) -> QualityRow:
        found = [(cycle, ids) for ids in tokens if (cycle := metrics.find_cycle(ids.tolist())) is not None]
        cycle, repeating = found[0] if found else (None, np.zeros(0, np.int32))
        reference = self.reference
        return QualityRow(
            temperature=temperature,
            texts=len(texts),
            tokens=sum(ids.size for ids in tokens),
            characters=sum(map(len, texts)),
            logp=logp,
            distinct=tuple(metrics.distinct(sequences, n) for n in (1, 2, 3)),
            seq_rep_4=metrics.seq_rep(sequences, 4),
            cycles=len(found),
            cycle=cycle,
            cycle_text=self.sampler.tokenizer.decode(repeating[cycle.start :][: cycle.period]) if cycle else None,
            known_words=metrics.known_share(sequences, reference.words) if reference and self.unit == "word" else None,
            copy=longest_copy(texts, self.copies, reference.train) if reference and self.copies is not None else None,
        )


def copies_of(texts: Iterable[str], train: Sequence[str]) -> dict[str, metrics.Span]:
    """The longest copied span of each text, found in one pass over the training text."""
    different = list(dict.fromkeys(texts))
    return dict(zip(different, metrics.longest_copies(different, train)))


def longest_copy(texts: Sequence[str], copies: Mapping[str, metrics.Span], train: Sequence[str]) -> CopiedSpan | None:
    """The longest span of ``texts`` that occurs in ``train``, and where it first does; ``None`` without one."""
    text = max(texts, key=lambda each: copies[each].length)
    start, length = copies[text]
    copied = text[start : start + length]
    place = metrics.find_place(copied, train) if copied else None
    return place and CopiedSpan(copied, length, texts.index(text), start, place.text, place.at)


def mean_logp(sampler: Sampler, references: Sequence[ReferenceText]) -> float | None:
    """The mean log-likelihood per token in nats of real texts, each after an empty prompt and under its own condition.

    Unknown tokens are read and not scored, because they cannot be drawn.
    """
    logp = [np.zeros(0)]
    for condition, cut in product(dict.fromkeys(each.condition for each in references), (False, True)):
        texts = [each.text for each in references if (each.condition, each.cut) == (condition, cut)]
        conditioned = sampler if condition is None else sampler.with_condition(condition)
        scorer = Scorer(conditioned, unk="keep", end=False if cut else None)
        logp += [scores.logp[scores.tokens != UNK] for _, scores in scorer.score_each(texts)]
    return _mean(np.concatenate(logp))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean(dtype=np.float64)) if values.size else None


def _as_decoded(texts: list[str]) -> list[str]:
    """Texts as the model would write them: bytes that are not UTF-8 become U+FFFD."""
    return [text if text.isascii() else text_bytes(text).decode("utf-8", "replace") for text in texts]


def _row_json(row: QualityRow) -> dict[str, object]:
    values = asdict(row)
    return values | {"cycle": None if row.cycle is None else row.cycle._asdict(), "distinct": list(row.distinct)}
