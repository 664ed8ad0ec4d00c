"""``dates``: every spelling has the right meaning, and held-out dates never occur in training."""

import re
from datetime import date, datetime, timedelta

import pytest

from jaxgen.data.tables import digest
from jaxgen.errors import UsageError
from jaxgen.tasks.translate import dates as module
from jaxgen.tasks.translate.dates import FIRST_DAY, LAST_DAY, SHORT_YEARS, SPELLINGS, dates, held_out, spell

#: How ``strptime`` reads each spelling, once ordinals are numbers.
PATTERNS = {
    "{weekday}, {d} {month} {year}": "%A, %d %B %Y",
    "{weekday} the {nth} of {month}, {year}": "%A the %d of %B, %Y",
    "{d} {month} {year}": "%d %B %Y",
    "{nth} {month} {year}": "%d %B %Y",
    "the {nth} of {month} {year}": "the %d of %B %Y",
    "the {ordinal} of {month}, {year}": "the %d of %B, %Y",
    "{month} {d}, {year}": "%B %d, %Y",
    "{month} {nth}, {year}": "%B %d, %Y",
    "{month} the {nth}, {year}": "%B the %d, %Y",
    "{month} {ordinal}, {year}": "%B %d, %Y",
    "{year}, {month} {d}": "%Y, %B %d",
    "{d}. {month} '{yy}": "%d. %B '%y",
    "{wd} {d} {mon} {year}": "%a %d %b %Y",
    "{wd}, {mon} {d}, {year}": "%a, %b %d, %Y",
    "{d} {mon}. {year}": "%d %b. %Y",
    "{mon}. {d}, {year}": "%b. %d, %Y",
    "{nth} {mon} '{yy}": "%d %b '%y",
    "{mon} {nth} '{yy}": "%b %d '%y",
    "{d}-{mon}-{year}": "%d-%b-%Y",
    "{year}-{mon}-{dd}": "%Y-%b-%d",
    "{d} {MON} {year}": "%d %b %Y",
    "{MON} {d} {year}": "%b %d %Y",
    "{dd}-{MON}-{year}": "%d-%b-%Y",
    "{dd}{MON}{yy}": "%d%b%y",
    "{wd} {d}.{m}.{year}": "%a %d.%m.%Y",
    "{dd}.{mm}.{year}": "%d.%m.%Y",
    "{d}. {m}. {year}": "%d. %m. %Y",
    "{d}.{m}.{yy}": "%d.%m.%y",
    "{mm}/{dd}/{year}": "%m/%d/%Y",
    "{m}/{d}/{yy}": "%m/%d/%y",
    "{year}/{mm}/{dd}": "%Y/%m/%d",
    "{year}{mm}{dd}": "%Y%m%d",
}
UNITS = {
    "first": 1,
    "second": 2,
    "third": 3,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "seventh": 7,
    "eighth": 8,
    "ninth": 9,
}
TENS = {"tenth": 10, "eleventh": 11, "twelfth": 12, "thirteenth": 13, "fourteenth": 14, "fifteenth": 15}
TENS |= {"sixteenth": 16, "seventeenth": 17, "eighteenth": 18, "nineteenth": 19, "twentieth": 20, "thirtieth": 30}
WORDS = UNITS | TENS | {f"twenty-{word}": 20 + n for word, n in UNITS.items()} | {"thirty-first": 31}
SMALL = {"train": 2000, "val": 50, "held_out_dates": 100, "held_out_pairs": 200}


def read(text, pattern):
    """The day that a text says by a pattern, or None; two digits of a year are read as 1950 to 2049."""
    text = re.sub(r"(?<=\d)(st|nd|rd|th)\b", "", text)
    text = re.sub("|".join(sorted(WORDS, key=len, reverse=True)), lambda word: str(WORDS[word[0]]), text)
    try:
        day = datetime.strptime(text, pattern).date()
    except ValueError:
        return None
    if "%y" in pattern:
        day = day.replace(year=(day.year - 1950) % 100 + 1950)
    if "%a" in pattern.lower() and f"{day:%a}" not in text:
        return None
    return day


def written(day, spelling):
    return day.year in SHORT_YEARS or "{yy}" not in spelling


def days(step):
    count = (LAST_DAY - FIRST_DAY).days + 1
    return [FIRST_DAY + timedelta(days=n) for n in range(0, count, step)] + [
        LAST_DAY,
        date(2000, 2, 29),
        date(1904, 2, 29),
    ]


@pytest.fixture(scope="module")
def splits():
    return dates(3, **SMALL)


def test_there_are_at_least_twenty_spellings_each_with_a_pattern_to_read_it():
    assert len(set(SPELLINGS)) == len(SPELLINGS) >= 20
    assert set(SPELLINGS) == set(PATTERNS)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_spelling_is_read_back_as_the_day_it_was_written_for(spelling):
    for day in days(487):
        if written(day, spelling):
            assert read(spell(day, spelling), PATTERNS[spelling]) == day


def test_ordinals_end_as_in_english():
    said = [spell(date(2026, 1, n), "{nth} {month} {year}").split()[0] for n in range(1, 32)]
    assert said[:4] == ["1st", "2nd", "3rd", "4th"]
    assert said[9:14] == ["10th", "11th", "12th", "13th", "14th"]
    assert said[19:24] == ["20th", "21st", "22nd", "23rd", "24th"]
    assert said[29:] == ["30th", "31st"]


@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_no_text_is_written_for_two_days_or_by_two_spellings(step):
    texts = [spell(day, s) for day in set(days(step)) for s in SPELLINGS if written(day, s)]
    assert len(set(texts)) == len(texts)


def test_whatever_way_a_text_can_be_read_it_says_its_target(splits):
    for pairs in splits.values():
        for source, target in list(zip(*pairs))[:60]:
            assert {read(source, pattern) for pattern in PATTERNS.values()} - {None} == {date.fromisoformat(target)}


def test_two_digits_are_written_for_the_years_they_stand_for(splits):
    years = {
        int(target[:4])
        for pairs in splits.values()
        for source, target in zip(*pairs)
        if not re.search(r"\d{4}", source)
    }
    assert years <= set(SHORT_YEARS)
    assert len(years) > 50


def test_every_split_has_as_many_different_pairs_as_asked_for(splits):
    assert {name: len(set(zip(*pairs))) for name, pairs in splits.items()} == SMALL
    assert {name: len(pairs.source) for name, pairs in splits.items()} == SMALL


def test_days_of_validation_and_held_out_dates_occur_once_and_nowhere_else(splits):
    used = {name: set(pairs.target) for name, pairs in splits.items()}
    for name in ("val", "held_out_dates"):
        assert len(used[name]) == SMALL[name]
        assert all(used[name].isdisjoint(used[other]) for other in splits if other != name)


def spelled(pairs):
    """The (spelling, month) of each pair, found by trying all spellings."""
    for source, target in zip(*pairs):
        day = date.fromisoformat(target)
        yield next((s, day.month) for s in SPELLINGS if spell(day, s) == source)


def test_held_out_pairs_are_written_in_their_own_split_alone(splits):
    held = held_out(3)
    shown = {name: set(spelled(pairs)) for name, pairs in splits.items()}
    assert shown["held_out_pairs"] == held
    for name in ("train", "val", "held_out_dates"):
        assert held.isdisjoint(shown[name])
    # and training shows nearly all others: 2,000 pairs are few for 348 of them
    assert len(shown["train"]) > 0.95 * (len(SPELLINGS) * 12 - len(held))


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_every_held_out_spelling_and_form_of_a_month_is_shown_otherwise(seed):
    held = held_out(seed)
    forms = {s: (re.findall(r"{(month|mon|MON)}", s) or ["digits"])[0] for s in SPELLINGS}
    assert len(held) == 36
    assert all(sum((s, month) in held for month in range(1, 13)) <= 2 for s in SPELLINGS)
    for month in range(1, 13):
        here = [s for s in SPELLINGS if (s, month) in held]
        assert len({forms[s] for s in here}) == 3
        assert sum("{yy}" in s for s in here) <= 1


def test_days_come_back_in_other_spellings_until_there_are_none_left(monkeypatch):
    monkeypatch.setattr(module, "LAST_DAY", date(1900, 3, 1))
    few = {"val": 5, "held_out_dates": 5, "held_out_pairs": 50}
    pairs = dates(0, train=50 * 23, **few)["train"]
    assert len(set(zip(*pairs))) == 50 * 23
    assert {pairs.target.count(day) for day in set(pairs.target)} == {23}
    with pytest.raises(UsageError, match="1,150"):
        dates(0, train=50 * 23 + 1, **few)
    with pytest.raises(UsageError, match="51"):
        dates(0, train=10, **few | {"held_out_pairs": 51})
    with pytest.raises(UsageError, match=" 0"):
        dates(0, train=10, **few | {"held_out_dates": 100})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "-1"),
        ({"train": 0}, "training pairs"),
        ({"val": 0}, "validation pairs"),
        ({"held_out_dates": 1.5}, r"1\.5"),
        ({"held_out_pairs": True}, "True"),
    ],
)
def test_a_number_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        dates(**wrong)


def test_the_same_seed_gives_these_pairs_on_every_machine_and_another_gives_others(splits):
    assert dates(3, **SMALL) == splits
    assert digest(splits) == "c54530e351cc9aeb2612a176cd8aff86b7ec3244828bc6c6740f16936c2f6043"
    other = dates(4, **SMALL)
    assert all(other[name] != splits[name] for name in splits)
    assert held_out(4) != held_out(3)


def test_a_digest_tells_columns_and_splits_apart(splits):
    train, val = splits["train"], splits["val"]
    different = [{"train": train}, {"val": train}, {"train": val}, {"train": train, "val": val}]
    different += [{"train": train._replace(source=train.target, target=train.source)}]
    assert len({digest(each) for each in different}) == len(different)
