"""The built-in set ``dates``: one day in 32 spellings -> ``2026-11-21``, for ``translate``.

Days range from 1900 to 2099. No spelling is ambiguous:

- with dots the day comes first (21.11.2026), with slashes the month (11/21/2026), unless a year of four digits comes
  first, followed by month and day;
- two-digit years mean 1950 to 2049, and days of other years are never written with them.

No text has two spellings either: 5 May and 5 May., whose month has three letters, differ by the dot.

Two things are held out. *Dates*: the days of ``val`` and of ``held_out_dates`` never occur in training. *Pairs* of a
spelling and a month: training never writes a day of that month in that spelling, but shows the spelling with other
months and the month, in the same form, in other spellings. ``held_out_pairs`` tests whether a model combines the two.
"""

from __future__ import annotations

from collections import Counter
from datetime import date, timedelta

import numpy as np

from jaxgen.data.batches import check_batch_sizes, permutation, random_bits
from jaxgen.data.tables import Pairs
from jaxgen.errors import UsageError

FIRST_DAY, LAST_DAY = date(1900, 1, 1), date(2099, 12, 31)
#: Years that may be written with two digits.
SHORT_YEARS = range(1950, 2050)
#: Spellings with the fields of ``spell``. No two may ever write the same text: a held-out pair would not be held out.
SPELLINGS = (
    "{weekday}, {d} {month} {year}",
    "{weekday} the {nth} of {month}, {year}",
    "{d} {month} {year}",
    "{nth} {month} {year}",
    "the {nth} of {month} {year}",
    "the {ordinal} of {month}, {year}",
    "{month} {d}, {year}",
    "{month} {nth}, {year}",
    "{month} the {nth}, {year}",
    "{month} {ordinal}, {year}",
    "{year}, {month} {d}",
    "{d}. {month} '{yy}",
    "{wd} {d} {mon} {year}",
    "{wd}, {mon} {d}, {year}",
    "{d} {mon}. {year}",
    "{mon}. {d}, {year}",
    "{nth} {mon} '{yy}",
    "{mon} {nth} '{yy}",
    "{d}-{mon}-{year}",
    "{year}-{mon}-{dd}",
    "{d} {MON} {year}",
    "{MON} {d} {year}",
    "{dd}-{MON}-{year}",
    "{dd}{MON}{yy}",
    "{wd} {d}.{m}.{year}",
    "{dd}.{mm}.{year}",
    "{d}. {m}. {year}",
    "{d}.{m}.{yy}",
    "{mm}/{dd}/{year}",
    "{m}/{d}/{yy}",
    "{year}/{mm}/{dd}",
    "{year}{mm}{dd}",
)
# Not from `calendar`, which follows the locale.
_WEEKDAY_NAMES = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
_MONTH_NAMES = "January February March April May June July August September October November December"
_NUMERALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
_NUMERALS += "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
_WEEKDAYS, _MONTHS, _TO_TWENTIETH = _WEEKDAY_NAMES.split(), _MONTH_NAMES.split(), _NUMERALS.split()
_ORDINALS = [*_TO_TWENTIETH, *(f"twenty-{word}" for word in _TO_TWENTIETH[:9]), "thirtieth", "thirty-first"]
_ENDINGS = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}
# The fields that write the month as a word; other spellings write digits.
_FORMS = ("{month}", "{mon}", "{MON}")
# Number of spellings held out for each month, and of months held out of a spelling. The spellings of a month differ in
# the form of the month, so that training shows every form of every month. At most one has a two-digit year, so
# that days of every year have a held-out spelling.
_HELD_A_MONTH, _HELD_A_SPELLING = 3, 2
# Streams of random bits; 1 to 12 are the months of the held-out pairs.
_DAYS, _PAIR_DAYS, _TRAIN, _VAL, _DATES, _PAIRS = 0, 13, 14, 15, 16, 17


def spell(day: date, spelling: str) -> str:
    """Returns a day in one of ``SPELLINGS``.

    For 7 March 1999, the fields are d 7, dd 07, nth 7th, ordinal seventh, weekday Sunday, wd Sun, month March, mon Mar,
    MON MAR, m 3, mm 03, year 1999, yy 99.
    """
    weekday, month = _WEEKDAYS[day.weekday()], _MONTHS[day.month - 1]
    return spelling.format(
        d=day.day,
        dd=f"{day.day:02}",
        nth=f"{day.day}{_ENDINGS.get(day.day, 'th')}",
        ordinal=_ORDINALS[day.day - 1],
        weekday=weekday,
        wd=weekday[:3],
        month=month,
        mon=month[:3],
        MON=month[:3].upper(),
        m=day.month,
        mm=f"{day.month:02}",
        year=day.year,
        yy=f"{day.year % 100:02}",
    )


def held_out(seed: int) -> frozenset[tuple[str, int]]:
    """Returns the (spelling, month) pairs that training never shows, months from 1: three a month, a tenth of all."""
    pairs: set[tuple[str, int]] = set()
    months: Counter[str] = Counter()
    for month in range(1, 13):
        chosen: list[str] = []
        traits: set[str] = set()
        for k in permutation(len(SPELLINGS), seed, month, "dates"):
            spelling = SPELLINGS[k]
            new = {next((form for form in _FORMS if form in spelling), "digits")}
            new |= {"{yy}"} if "{yy}" in spelling else set()
            if traits.isdisjoint(new) and months[spelling] < _HELD_A_SPELLING and len(chosen) < _HELD_A_MONTH:
                chosen.append(spelling)
                traits |= new
        months.update(chosen)
        pairs |= {(spelling, month) for spelling in chosen}
    return frozenset(pairs)


def dates(
    seed: int = 0, *, train: int = 40_000, val: int = 1_000, held_out_dates: int = 2_000, held_out_pairs: int = 2_000
) -> dict[str, Pairs]:
    """Returns the splits ``train``, ``val``, ``held_out_dates`` and ``held_out_pairs`` with that many pairs each.

    No pair occurs twice in a split. A day occurs once in a split, but in ``train`` repeatedly, in other spellings, if
    there are more pairs than days. ``val`` is for early stopping. ``held_out_pairs`` uses training days, so only the
    combination is new. The result depends on the arguments only, and is the same on every platform.

    Raises:
        UsageError: A number is below 1, or there are too few days for it.
    """
    check_batch_sizes(
        seed=seed,
        number_of_training_pairs=train,
        number_of_validation_pairs=val,
        number_of_held_out_dates=held_out_dates,
        number_of_held_out_pairs=held_out_pairs,
    )
    order = permutation((LAST_DAY - FIRST_DAY).days + 1, seed, _DAYS, "dates")
    apart, kept = order[: val + held_out_dates], order[val + held_out_dates :]
    again = kept[permutation(kept.size, seed, _PAIR_DAYS, "dates")]
    held = held_out(seed)
    pairs = _choices([[name for name in SPELLINGS if (name, month) in held] for month in range(1, 13)])
    others = _choices([[name for name in SPELLINGS if (name, month) not in held] for month in range(1, 13)])
    rounds = min(len(spellings) for spellings in others.values())
    return {
        "train": _pairs("train", train, kept, rounds, others, seed, _TRAIN),
        "val": _pairs("val", val, apart[:val], 1, others, seed, _VAL),
        "held_out_dates": _pairs("held_out_dates", held_out_dates, apart[val:], 1, others, seed, _DATES),
        "held_out_pairs": _pairs("held_out_pairs", held_out_pairs, again, 1, pairs, seed, _PAIRS),
    }


def _choices(by_month: list[list[str]]) -> dict[tuple[int, bool], list[str]]:
    """Returns the allowed spellings by month and by whether the year may have two digits."""
    full = {(m, False): [name for name in names if "{yy}" not in name] for m, names in enumerate(by_month, 1)}
    return full | {(m, True): names for m, names in enumerate(by_month, 1)}


def _pairs(
    split: str,
    number: int,
    days: np.ndarray,
    rounds: int,
    choices: dict[tuple[int, bool], list[str]],
    seed: int,
    stream: int,
) -> Pairs:
    """Returns ``number`` pairs: every day in one of its spellings, then every day in the next, for ``rounds`` rounds.

    ``days`` [N] counts from ``FIRST_DAY``. ``choices``, at least ``rounds`` each, are picked by the bits of ``stream``.
    """
    if number > days.size * rounds:
        raise UsageError(
            f"{number:,} pairs of {split} were asked for, but the days left by the other splits allow "
            f"{days.size * rounds:,}. Ask for fewer."
        )
    offsets = random_bits(days.size, seed, stream, "dates")
    source, target = [], []
    for k in range(number):
        turn, n = divmod(k, days.size)
        day = FIRST_DAY + timedelta(days=int(days[n]))
        spellings = choices[day.month, day.year in SHORT_YEARS]
        source.append(spell(day, spellings[(int(offsets[n]) + turn) % len(spellings)]))
        target.append(day.isoformat())
    return Pairs(source, target)
