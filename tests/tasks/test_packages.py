"""``stdlib-packages``: snippets do not name their package, and no file is in both splits."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
from builders import write

from jaxgen.data.tables import digest
from jaxgen.errors import DataError, UsageError
from jaxgen.tasks.classify.stdlib_packages import (
    MAX_CHARS,
    MAX_LINES,
    MIN_LINES,
    PACKAGES,
    read,
    stdlib_packages,
    validation_files,
)

SMALL = {"train": 30, "val": 8}
WORD = re.compile(r"[a-z0-9]+")


def source(package, file, lines=40):
    """A file whose every line says by two numbers which package and file it is of."""
    body = [f"p{package}f{file}n{n} = '{'=' * (n % 30)}'" for n in range(lines)]
    body[3:3] = ["", "from os import (  # several", "    gives_away,", ")", f"import {PACKAGES[package]}"]
    body[20:20] = [f"# {PACKAGES[package - 1].upper()} is named", f"_{PACKAGES[package]}_x = 1", "   "]
    return "\n".join(["#!/usr/bin/python", "# gives_away: a licence", "", *body]) + "\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A standard library of ten packages with five files each, and what is no part of it."""
    root = tmp_path_factory.mktemp("library")
    for k, package in enumerate(PACKAGES):
        for file in range(5):
            write(root / package / ("deep" if file == 4 else "") / f"m{file}.py", source(k, file))
        for name in ("test/t.py", "deep/tests/t.py", "__pycache__/t.py", "readme.txt"):
            write(root / package / name, "gives_away = 1\n" * 50)
        write(root / package / "latin.py", "gives_away = 'é'\n".encode("latin-1") * 50)
        write(root / package / "short.py", "gives_away = 1\n" * (MIN_LINES - 1))
    return root


@pytest.fixture(scope="module")
def splits(library):
    return stdlib_packages(0, **SMALL, folder=library)


@pytest.fixture(scope="module")
def real():
    return stdlib_packages(0, train=150, val=40)


def examples(splits):
    return [(split, text, label) for split, labelled in splits.items() for text, label in zip(*labelled)]


def test_every_package_has_as_many_snippets_as_asked_for(splits):
    assert len(PACKAGES) == len(set(PACKAGES)) == 10
    assert {name: Counter(labelled.labels) for name, labelled in splits.items()} == {
        name: dict.fromkeys(PACKAGES, number) for name, number in SMALL.items()
    }


def test_a_snippet_is_some_lines_in_a_row_of_a_file_of_its_package(splits):
    for _, text, label in examples(splits):
        places = [tuple(map(int, re.findall(r"\d+", line)[:3])) for line in text.split("\n")]
        packages, files, numbers = zip(*places)
        assert set(packages) == {PACKAGES.index(label)}
        assert len(set(files)) == 1
        assert list(numbers) == list(range(numbers[0], numbers[0] + len(numbers)))


def test_snippets_have_five_to_twelve_lines_and_no_more_characters_than_said(splits, real):
    for made in (splits, real):
        counts = Counter(text.count("\n") + 1 for _, text, _ in examples(made))
        assert set(counts) == set(range(MIN_LINES, MAX_LINES + 1))
        assert max(len(text) for _, text, _ in examples(made)) <= MAX_CHARS


def test_nothing_that_gives_the_answer_away_is_shown(splits):
    for _, text, _ in examples(splits):
        assert "gives_away" not in text
        assert not set(PACKAGES) & set(WORD.findall(text.lower()))


def test_whole_files_are_training_or_validation(splits):
    files = {name: {re.search(r"p\d+f\d+", text)[0] for text in labelled.texts} for name, labelled in splits.items()}
    assert files["train"].isdisjoint(files["val"])
    assert len(files["val"]) == 10  # a fifth of five files is one
    assert len(files["train"]) == 40


def test_a_fifth_of_the_lines_is_for_validation_as_nearly_as_files_allow():
    sizes = [10, 20, 30, 40, 100]
    chosen = [validation_files(sizes, seed, 0) for seed in range(50)]
    assert {sum(sizes[n] for n in files) for files in chosen} == {30, 40, 50}
    assert len(set(map(frozenset, chosen))) > 3


def test_where_every_file_is_large_the_smallest_is_for_validation(tmp_path):
    for k, package in enumerate(PACKAGES):
        for file, lines in enumerate((30, 20)):
            write(tmp_path / package / f"m{file}.py", "".join(f"p{k}f{file}n{n} = {n}\n" for n in range(lines)))
    made = stdlib_packages(0, train=20, val=10, folder=tmp_path)
    assert {re.search(r"f(\d)", text)[1] for text in made["val"].texts} == {"1"}


def test_no_text_occurs_twice(tmp_path, real):
    """All ten packages are nearly the same here: what they share is shown once, for one of them."""
    for k, package in enumerate(PACKAGES):
        for file in range(5):
            shared = "".join(f"shared{n}\n" for n in range(8))
            write(tmp_path / package / f"m{file}.py", shared + "".join(f"p{k}f{file}n{n}\n" for n in range(20)))
    for made in (stdlib_packages(0, train=60, val=15, folder=tmp_path), real):
        texts = [text for _, text, _ in examples(made)]
        assert len(set(texts)) == len(texts)


def test_snippets_begin_at_the_left_and_keep_their_indentation(tmp_path, library):
    for package in PACKAGES:
        for file in (library / package).glob("m*.py"):
            lines = [line for line in file.read_text().split("\n") if re.match(r"p\d", line)]
            indented = "".join(f"        {'    ' * (n % 2)}{line}\n" for n, line in enumerate(lines))
            write(tmp_path / package / file.name, indented)
    for _, text, _ in examples(stdlib_packages(0, train=20, val=5, folder=tmp_path)):
        assert {len(line) - len(line.lstrip()) for line in text.split("\n")} == {0, 4}


def test_imports_of_every_form_are_left_out(tmp_path):
    kept = [f"kept_{n}()" for n in range(8)]
    write(
        tmp_path / "m.py",
        f"{kept[0]}\nimport a, \\\n    b\n{kept[1]}\nif x:\n    from . import (c,  # and\n        d)  # so on\n"
        f"{kept[2]}\nfrom ..e.f import g, \\\n    h\n"
        f"{kept[3]}\n{kept[4]}\nimport i as j; k()\n{kept[5]}\nfrom l import *\n"
        f"important = from_ = 1\n{kept[6]}\n# comment at the end\n{kept[7]}\n",
    )
    expected = [*kept[:2], "if x:", *kept[2:6], "important = from_ = 1", kept[6], "# comment at the end", kept[7]]
    assert read(tmp_path) == [expected]


def test_the_library_of_this_python_gives_balanced_snippets_without_names_or_imports(real):
    assert {name: Counter(labelled.labels) for name, labelled in real.items()} == {
        "train": dict.fromkeys(PACKAGES, 150),
        "val": dict.fromkeys(PACKAGES, 40),
    }
    for _, text, _ in examples(real):
        assert not set(PACKAGES) & set(WORD.findall(text.lower()))
        assert not re.search(r"^\s*(import \w|from [\w.]+ import)", text, re.MULTILINE)


def test_every_import_that_python_sees_is_left_out_of_this_pythons_library():
    """By the parser of the language, file by file: no line of an import statement is among what may be shown."""
    import logging
    import urllib

    for package in (logging, urllib):
        folder = Path(package.__file__).parent
        shown = {line for lines in read(folder) for line in lines}
        for path in folder.glob("*.py"):
            text = path.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    assert shown.isdisjoint(text.splitlines()[node.lineno - 1 : node.end_lineno])


def test_the_same_seed_gives_these_snippets_on_every_machine_and_another_gives_others(library, splits):
    assert stdlib_packages(0, **SMALL, folder=library) == splits
    assert digest(splits) == "8c3f51ad39fb56956b9e6444ae5c7e4cee959c55b9933ecc88305508c9ee8444"
    assert all(stdlib_packages(1, **SMALL, folder=library)[name] != splits[name] for name in splits)


def test_a_library_without_the_packages_as_files_is_told(tmp_path, library):
    with pytest.raises(DataError, match="asyncio"):
        stdlib_packages(folder=tmp_path / "python311.zip")
    for package in PACKAGES:
        if package != "re":
            (tmp_path / package).symlink_to(library / package)
    with pytest.raises(DataError, match="re"):
        stdlib_packages(folder=tmp_path)


def test_more_snippets_than_there_are_places_are_refused(library):
    with pytest.raises(DataError, match="asyncio"):
        stdlib_packages(train=200, val=1, folder=library)
    with pytest.raises(DataError, match="50"):
        stdlib_packages(train=1, val=50, folder=library)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": 2**32}, "4294967296"),
        ({"train": 0}, "training"),
        ({"val": -3}, "-3"),
    ],
)
def test_a_number_that_cannot_be_is_refused(wrong, message, library):
    with pytest.raises(UsageError, match=message):
        stdlib_packages(**wrong, folder=library)
