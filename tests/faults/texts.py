"""Unusual texts: each decodes to the same bytes or is refused with the offset, in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jaxgen.errors import DataError
from jaxgen.tasks.language.corpus import prepare
from jaxgen.text import Reading

from .fault import Fault
from .memory import run_watched

MB = 10**6
#: The most memory that reading, learning and encoding may take, in bytes of the file.
TIMES = 6
LEVELS = ("char", "byte", "bpe")
#: Encode the text of ``argv[1]`` at a level, tell the growth of memory, then read it back from its tokens.
ENCODING = """
import json
import jaxgen.tasks.language.corpus, jaxgen.tokenizers
try:
    import tokenizers
except ImportError:
    pass
watched = Peak()
options = json.loads(sys.argv[3])
made = jaxgen.tasks.language.corpus.prepare([sys.argv[1]], level=sys.argv[2], **options)
growth = watched.growth()
if options:  # rows: their order is that of the text, and a part of them was held out
    assert made.train.chars + made.val.chars > 14_000_000 and not made.val.unknown
    sys.exit(print(json.dumps(growth)))
with open(sys.argv[1], "rb") as file:
    for tokens in (made.train, made.val):
        for start in range(0, tokens.ids.size, 1 << 16):
            text = made.tokenizer.decode_bytes(tokens.ids[start : start + (1 << 16)])
            unknown = text.count(b"<unk>")
            assert unknown or file.read(len(text)) == text, "it came back as another"
            assert not unknown, "a symbol was lost"
    assert not file.read(1), "its end is missing"
print(json.dumps(growth))
"""


def came_back(path: Path, *levels: str) -> None:
    """Raise ``AssertionError`` unless the file comes back from its tokens: the text as it is read, all its bytes."""
    for level in levels:
        text = Reading.of_level(level).text(path.read_bytes().decode("utf-8", "surrogateescape"))
        made = prepare([str(path)], level=level)
        found = b"".join(made.tokenizer.decode_bytes(tokens.ids) for tokens in (made.train, made.val))
        assert found == text.encode("utf-8", "surrogateescape"), f"at the level {level} it came back as another"


def refused(path: Path, *told: str, levels: tuple[str, ...] = LEVELS, **options: str) -> None:
    """Raise ``AssertionError`` unless it is refused with the exit code of data, and all that must be is told."""
    for level in levels:
        with pytest.raises(DataError) as caught:
            prepare([str(path)], level=level, **options)
        assert caught.value.exit_code == 3
        assert all(part in str(caught.value) for part in told), str(caught.value)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "text.txt"
    path.write_bytes(content)
    return path


def letters(draw: np.random.Generator, alphabet: str, size: int) -> str:
    return "".join(draw.choice(list(alphabet), size))


def empty(folder: Path, draw: np.random.Generator) -> str:
    refused(written(folder, b""), "is empty")
    return "exit code 3"


def one_symbol(folder: Path, draw: np.random.Generator) -> str:
    refused(written(folder, b"x"), "at least 2 are needed")
    came_back(written(folder, "é".encode() * int(draw.integers(100, 5000))), *LEVELS)
    return "one alone: exit code 3; many: decoded to the same bytes"


def peculiar(symbols: str) -> Callable[[Path, np.random.Generator], str]:
    """Words with ``symbols`` among them: first, last, and wherever chance puts them."""

    def inject(folder: Path, draw: np.random.Generator) -> str:
        # What is held out at the end must have no symbol of its own: every text begins with all there are.
        text = symbols + "abc \r\n" + letters(draw, symbols + "abc \r\n", 3000) + symbols
        came_back(written(folder, text.encode()), *LEVELS)
        return "decoded to the same text at the levels char and bpe, to the same bytes at the level byte"

    return inject


def malformed(folder: Path, draw: np.random.Generator) -> str:
    """Bytes that are no UTF-8, half a character among them, anywhere in a text of some pieces."""
    wrong = [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xe2\x82", b"\xf5\x80\x80\x80"][int(draw.integers(5))]
    text = letters(draw, "ab €🎉\n", 300_000)
    before = len(text[: int(draw.integers(len(text)))].encode())
    path = written(folder, text.encode()[:before] + wrong + b"a" + text.encode()[before:])
    refused(path, f"byte {wrong[0]:#04x} at offset {before} ", levels=("char", "bpe"))
    came_back(path, "byte")
    return "exit code 3 with the offset; decoded to the same bytes at the level byte"


def half_a_character(folder: Path, draw: np.random.Generator) -> str:
    path = folder / "rows.jsonl"
    line = int(draw.integers(1, 50))
    path.write_text("\n".join('{"t": "a\\ud83c"}' if n == line else '{"t": "a\\ud83c\\udf89"}' for n in range(1, 51)))
    refused(path, f"line {line} of", "surrogate", text_column="t")
    return "exit code 3 with the line"


def large(
    make: Callable[[np.random.Generator], str], *levels: str, name: str = "text.txt", **options: str
) -> Callable[[Path, np.random.Generator], str]:
    """A large text, read with some options in a process whose memory is watched."""

    def inject(folder: Path, draw: np.random.Generator) -> str:
        path = folder / name
        path.write_text(make(draw), encoding="utf-8", newline="")
        size, most = path.stat().st_size, 0.0
        for level in levels:
            told = run_watched(
                ENCODING, path.name, level, json.dumps(options), cwd=folder, env={"XDG_CACHE_HOME": str(folder)}
            )
            most = max(most, json.loads(told) / size)
            assert most <= TIMES, f"at the level {level} it took {most:.1f} times its size"
        return f"decoded to the same bytes ({', '.join(levels)}); memory within {TIMES} times the size"

    return inject


def words(draw: np.random.Generator) -> str:
    """20 MB of words on one line: a few megabytes of 20,000 different ones by chance, over and over."""
    known = [letters(draw, "abcdefghijklmnop", int(size)) for size in draw.integers(2, 10, 20_000)]
    some = " ".join(draw.choice(known, 400_000)) + " "
    return (some * 20)[: 20 * MB]


def one_emoji(draw: np.random.Generator) -> str:
    return f"🎉{words(draw)}"


def no_space(draw: np.random.Generator) -> str:
    return letters(draw, "abcdefghijklmnop", 20 * MB)


def one_a_row(draw: np.random.Generator) -> str:
    """20 MB of rows of one word."""
    known = [letters(draw, "abcdefghijklmnop", int(size)) for size in draw.integers(2, 10, 20_000)]
    return "\n".join(["word", *draw.choice(known, 3_000_000)])


def never_again(draw: np.random.Generator) -> str:
    """20 MB of words that all differ."""
    return " ".join(f"{number:x}" for number in draw.permutation(3_000_000))[: 20 * MB]


def many_symbols(draw: np.random.Generator) -> str:
    """50,000 different symbols, each in what is learnt from too."""
    points = np.concatenate([np.arange(0x4E00, 0x9E00), np.arange(0xAC00, 0xD700), np.arange(0x20000, 0x24A50)])[
        :50_000
    ]
    assert points.size == 50_000
    every = "".join(map(chr, points.tolist()))
    return "".join(letters(draw, every, 50_000) + every for _ in range(55))


REQUIRED = "decodes to the same bytes, or exit code 3 with the offset"
BOUNDED = f"decodes to the same bytes; memory above the imports at most {TIMES} times the file"

FAULTS = (
    Fault("text: empty", REQUIRED, empty, times=1),
    Fault("text: one symbol", REQUIRED, one_symbol, times=5),
    Fault("text: NUL bytes", REQUIRED, peculiar("\0"), times=5),
    Fault("text: a byte order mark at the start and in the middle", REQUIRED, peculiar("\ufeff"), times=5),
    Fault("text: CRLF, lone CR, other line separators", REQUIRED, peculiar("\r\n\r\x85\u2028\x0b"), times=5),
    Fault("text: literal <unk>, <eos> and end-of-text marks", REQUIRED, peculiar("<unk><eos><|endoftext|>"), times=5),
    Fault("text: malformed UTF-8", REQUIRED, malformed, times=20),
    Fault("text: half a surrogate pair, escaped in JSONL", REQUIRED, half_a_character, times=5),
    Fault("text: 20 MB on one line", BOUNDED, large(words, "char", "byte"), times=2),
    Fault("text: 20 MB on one line, BPE", BOUNDED, large(words, "bpe"), times=1, slow=True),
    Fault("text: 20 MB of ASCII with one emoji", BOUNDED, large(one_emoji, "char", "byte"), times=2, slow=True),
    Fault("text: 20 MB without a space, BPE", BOUNDED, large(no_space, "bpe"), times=1, slow=True),
    Fault("text: 20 MB of words that all differ, BPE", BOUNDED, large(never_again, "bpe"), times=1, slow=True),
    Fault("text: 20 MB, one word per line", BOUNDED, large(one_a_row, "char", documents="line"), times=1, slow=True),
    Fault(
        "text: 20 MB of CSV, one word per row",
        BOUNDED,
        large(one_a_row, "char", name="text.csv", text_column="word"),
        times=1,
        slow=True,
    ),
    Fault("text: 20 MB of 50,000 symbols", BOUNDED, large(many_symbols, *LEVELS), times=1, slow=True),
)
