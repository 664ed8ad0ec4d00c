"""What came out, judged: texts drawn at several temperatures, measured beside real text of the same amount."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from jaxgen.errors import DataError, UsageError
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Scorer
from jaxgen.inference.text_stream import Sample
from jaxgen.metrics.diversity import WORD, Cycle, distinct, find_cycle, known_share, natural_unit, seq_rep, units
from jaxgen.metrics.memorization import Span, find_place, longest_copies
from jaxgen.tasks.language.conditioning import Condition, conditions_of
from jaxgen.tasks.registry import DATA
from jaxgen.tokenizers.base import EOS, UNK, text_bytes

SPACE = re.compile(r"\s")


@dataclass(frozen=True)
class Reference:
    """The texts that a model was trained on and validated with: documents, or one running text each.

    ``conditions`` are those of the validation texts, of a run that knows some.
    """

    train: list[str]
    val: list[str]
    conditions: list[Condition] | None = None

    @classmethod
    def of_run(cls, saved: LoadedRun) -> Reference:
        """Read them again as the run read them. Raises ``DataError`` when they are gone or not what they were."""
        splits = DATA[saved.config.task].texts(saved.config)
        then, now = saved.resolved["data"], splits.fingerprint
        if then != now:
            raise DataError(
                f"The data of the run {saved.directory.path} have changed: {then['name']} with sha256 {then['sha256']} "
                f"then, {now['name']} with {now['sha256']} now."
            )
        conditions = None if splits.val_known is None else conditions_of(splits.val_known)
        train, val = splits.whole()
        return cls(_as_decoded(train), _as_decoded(val), conditions)

    @cached_property
    def words(self) -> frozenset[str]:
        """All words of the training text."""
        return frozenset(match[0] for text in self.train for match in WORD.finditer(text))


@dataclass(frozen=True)
class Copy:
    """The longest span of some texts that occurs in the training text.

    Its ``length`` characters stand in sample number ``sample`` from ``start`` on, and in training text number
    ``source`` from ``source_start`` on, all counted from 0.
    """

    text: str
    length: int
    sample: int
    start: int
    source: int
    source_start: int


@dataclass(frozen=True)
class Row:
    """The measures of some texts, of real text if ``temperature`` is ``None``. ``None`` is what cannot be measured.

    ``logp`` is the mean log-likelihood in nats a token, before temperature; ``distinct`` are distinct-1, -2 and -3;
    ``cycles`` counts the texts that end in a cycle, ``cycle`` is that of the first of them, in tokens, and
    ``cycle_text`` what it repeats; ``known_words`` and ``copy`` need the training text.
    """

    temperature: float | None
    texts: int
    tokens: int
    characters: int
    logp: float | None
    distinct: tuple[float | None, ...]
    seq_rep_4: float | None
    cycles: int
    cycle: Cycle | None
    cycle_text: str | None
    known_words: float | None
    copy: Copy | None


@dataclass(frozen=True)
class Evaluation:
    """A row for each temperature in the order given and one for validation text; n-grams are of ``unit``.

    ``drawn`` says how many texts each condition got at each temperature; it is empty for a run that knows none.
    """

    rows: list[Row]
    validation: Row | None
    unit: str
    drawn: list[tuple[Condition, int]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        rows = [_row_json(row) for row in self.rows]
        drawn = [{**condition.to_json(), "texts": number} for condition, number in self.drawn]
        return {
            **({"conditions": drawn} if drawn else {}),
            "unit": self.unit,
            "rows": rows,
            "validation": None if self.validation is None else _row_json(self.validation),
        }


def evaluate(
    sampler: Sampler,
    temperatures: Sequence[float],
    settings: GenerationConfig | None = None,
    *,
    prompt: str = "",
    num_samples: int = 20,
    reference: Reference | None = None,
    unk: str = "error",
) -> Evaluation:
    """Draw ``num_samples`` texts at each of ``temperatures``, otherwise with ``settings``, and measure them.

    At temperature 0 one text is drawn and counted as often. n-grams are of words where the text puts spaces between
    them, else of characters. Without a ``reference`` there is no row of validation text, and what compares with the
    training text is ``None``. Raises ``UsageError`` before anything is compiled, also for texts of length 0.

    Of a run with labels or features the texts are drawn under the conditions of as many validation texts, evenly
    spread over them, unless ``sampler`` is under one: then the validation texts under that one are compared with.
    Validation text is always measured under its own condition.
    """
    settings = settings or GenerationConfig()
    if settings.length < 1:
        raise UsageError(f"Texts of length {settings.length} leave nothing to measure: give a length of 1 or more.")
    sweep = [replace(settings, temperature=temperature) for temperature in temperatures]
    shares = allocate(sampler, num_samples, reference)
    streams = [
        [
            each.samples(prompt, how, num_samples=1 if how.greedy else len(numbers), first=numbers.start, unk=unk)
            for each, numbers in shares
        ]
        for how in sweep
    ]  # checked here, drawn below
    drawn = [
        [
            sample
            for (_, numbers), part in zip(shares, parts)
            for sample in list(part) * (len(numbers) if how.greedy else 1)
        ]
        for how, parts in zip(sweep, streams)
    ]
    unit = natural_unit(reference.train if reference else (s.text for samples in drawn for s in samples))
    pieces = []
    if reference is not None:
        tokens = sum(s.tokens.size for samples in drawn for s in samples)
        size = settings.length * sum(len(s.text) for samples in drawn for s in samples) / max(tokens, 1)
        pieces = cut_pieces(
            reference.val,
            num_samples,
            max(1, round(size)),
            documents=sampler.documents,
            conditions=reference.conditions,
            only=sampler.condition,
        )
    texts = [s.text for samples in drawn for s in samples] + [piece.text for piece in pieces]
    judge = SampleMetrics(sampler, unit, reference, None if reference is None else copies_of(texts, reference.train))
    rows = [judge.samples(each, samples, prompt) for each, samples in zip(temperatures, drawn)]
    given = [] if sampler.conditioning is None else [(each.condition or Condition(), len(n)) for each, n in shares]
    return Evaluation(rows, judge.real(pieces) if pieces else None, unit, given)


def allocate(sampler: Sampler, number: int, reference: Reference | None) -> list[tuple[Sampler, range]]:
    """Samplers with the numbers of the samples that each draws, ``number`` in all, as ``evaluate`` says.

    Raises ``UsageError`` where the conditions of validation text are needed and not to be had.
    """
    if sampler.conditioning is None or sampler.condition is not None:
        return [(sampler, range(number))]
    if reference is None or not reference.conditions:
        raise UsageError(
            "Texts are drawn with labels and features in the proportion of the validation texts, which are not there: "
            "say with --label or --features what the texts are to be about."
        )
    counts = Counter(reference.conditions[i] for i in spread(number, len(reference.conditions)))
    shares, first = [], 0
    for condition, count in counts.items():
        shares.append((sampler.under(condition), range(first, first + count)))
        first += count
    return shares


def spread(count: int, among: int) -> list[int]:
    """``count`` of the numbers from 0 to ``among`` - 1, evenly spread."""
    return [i * among // count for i in range(count)]


@dataclass(frozen=True)
class ReferenceText:
    """A piece of real text; ``cut``: it was broken off there."""

    text: str
    cut: bool
    condition: Condition | None = None


def cut_pieces(
    texts: Sequence[str],
    count: int,
    size: int,
    *,
    documents: bool = False,
    conditions: Sequence[Condition] | None = None,
    only: Condition | None = None,
) -> list[ReferenceText]:
    """Up to ``count`` pieces of ``texts`` of at most ``size`` characters, evenly spread over them.

    None of no text. Of documents the beginnings; of running text what follows a white space, none overlapping another.
    ``conditions`` are those of the texts; with ``only``, pieces are of texts under that one.
    """
    if documents:
        under: Sequence[Condition | None] = conditions or [None] * len(texts)
        kept = [(text, mine) for text, mine in zip(texts, under) if only is None or mine == only]
        chosen = [kept[i] for i in spread(min(count, len(kept)), len(kept))]
        return [ReferenceText(text[:size], len(text) > size, mine) for text, mine in chosen]
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
    """Measures texts: the sampler knows their tokens, the reference and ``copies`` what is to be compared with it."""

    sampler: Sampler
    unit: str
    reference: Reference | None
    copies: Mapping[str, Span] | None

    def samples(self, temperature: float, samples: Sequence[Sample], prompt: str) -> Row:
        """The row of drawn texts."""
        sequences = [units(s.text, self.unit, before=prompt, cut=s.end in ("length", "time")) for s in samples]
        logp = np.concatenate([s.logp for s in samples])
        mean = float(logp.mean(dtype=np.float64)) if logp.size else None
        return self._row(temperature, [s.text for s in samples], [s.tokens for s in samples], sequences, mean)

    def real(self, pieces: Sequence[ReferenceText]) -> Row:
        """The row of real text."""
        sequences = [units(piece.text, self.unit, cut=piece.cut) for piece in pieces]
        tokens = [self._tokens(piece) for piece in pieces]
        return self._row(None, [piece.text for piece in pieces], tokens, sequences, mean_logp(self.sampler, pieces))

    def _tokens(self, piece: ReferenceText) -> np.ndarray:
        ids = self.sampler.tokenizer.encode(piece.text)
        ends = self.sampler.documents and not piece.cut
        return np.append(ids, np.int32(EOS)) if ends else ids

    def _row(
        self,
        temperature: float | None,
        texts: list[str],
        tokens: list[np.ndarray],
        sequences: list[list[str]],
        logp: float | None,
    ) -> Row:
        found = [(cycle, ids) for ids in tokens if (cycle := find_cycle(ids.tolist())) is not None]
        cycle, turning = found[0] if found else (None, np.zeros(0, np.int32))
        compare = self.reference
        return Row(
            temperature=temperature,
            texts=len(texts),
            tokens=sum(ids.size for ids in tokens),
            characters=sum(map(len, texts)),
            logp=logp,
            distinct=tuple(distinct(sequences, n) for n in (1, 2, 3)),
            seq_rep_4=seq_rep(sequences, 4),
            cycles=len(found),
            cycle=cycle,
            cycle_text=self.sampler.tokenizer.decode(turning[cycle.start :][: cycle.period]) if cycle else None,
            known_words=known_share(sequences, compare.words) if compare and self.unit == "word" else None,
            copy=longest_copy(texts, self.copies, compare.train) if compare and self.copies is not None else None,
        )


def copies_of(texts: Iterable[str], train: Sequence[str]) -> dict[str, Span]:
    """The longest copied span of each text: all at once, since the training text is read through for it."""
    different = list(dict.fromkeys(texts))
    return dict(zip(different, longest_copies(different, train)))


def longest_copy(texts: Sequence[str], copies: Mapping[str, Span], train: Sequence[str]) -> Copy | None:
    """The longest span of ``texts`` that occurs in ``train``, where it does first; ``None`` if nothing is shared."""
    text = max(texts, key=lambda each: copies[each].length)
    start, length = copies[text]
    copied = text[start : start + length]
    place = find_place(copied, train) if copied else None
    return place and Copy(copied, length, texts.index(text), start, place.text, place.at)


def mean_logp(sampler: Sampler, pieces: Sequence[ReferenceText]) -> float | None:
    """The mean log-likelihood in nats that the model gives a token of real texts, each behind an empty prompt and under
    its own condition.

    Unknown tokens are read and not scored, for nothing like them can be drawn.
    """
    logp = [np.zeros(0)]
    for condition, cut in product(dict.fromkeys(piece.condition for piece in pieces), (False, True)):
        texts = [piece.text for piece in pieces if (piece.condition, piece.cut) == (condition, cut)]
        mine = sampler if condition is None else sampler.under(condition)
        scorer = Scorer(mine, unk="keep", end=False if cut else None)
        logp += [scores.logp[scores.tokens != UNK] for _, scores in scorer.score_each(texts)]
    every = np.concatenate(logp)
    return float(every.mean(dtype=np.float64)) if every.size else None


def _as_decoded(texts: list[str]) -> list[str]:
    """Texts as the model would write them: bytes that are no UTF-8 are U+FFFD."""
    return [text if text.isascii() else text_bytes(text).decode("utf-8", "replace") for text in texts]


def _row_json(row: Row) -> dict[str, Any]:
    values = asdict(row)
    return values | {"cycle": None if row.cycle is None else row.cycle._asdict(), "distinct": list(row.distinct)}
