"""Alter the files of a run at random: as bytes, and as JSON that keeps its structure."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

#: What tends to stand where a byte should not, and values of every kind where another is expected.
TOKENS = [b"[", b"]", b"{", b"}", b'"', b",", b":", b"\\u0000", b"\\ud800", b"-", b"1e999", b"NaN", b"null", b"true"]
TOKENS += [b"\x00", b"\xff", b"\xef\xbb\xbf", b"[" * 2000, b"9" * 5000, b"=", b"#", b"'", b"\n", b"inf", b"[["]
VALUES = [None, True, False, 0, -1, 1, 2, 10**9, 10**30, -(2**63), 0.5, 1e308, "", "x", "x" * 300, "\x00", "\ud800"]
VALUES += [[], {}, [[]], [None], [0, 0], {"": 0}, {"kind": "char"}, ["a", "a"], "(a+)+$", "../../x", "lstm", "ngram"]


def mutated_bytes(raw: bytes, pick: random.Random) -> bytes:
    """``raw`` with one to four changes: a bit, a byte, a token put in, a part taken out, doubled or moved."""
    data = bytearray(raw)
    for _ in range(pick.randint(1, 4)):
        at = pick.randrange(len(data) + 1)
        end = min(len(data), at + pick.randint(1, 30))
        match pick.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << pick.randrange(8)
            case 1:
                data[at:at] = pick.choice(TOKENS)
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end]
            case _:
                data[at:end] = pick.choice(TOKENS)
    return bytes(data)


def mutated_json(value: Any, pick: random.Random) -> Any:
    """A copy of ``value`` with one to three changes: a value replaced, taken out or doubled, somewhere inside."""
    value = copy.deepcopy(value)
    for _ in range(pick.randint(1, 3)):
        holder, key = None, None
        inner = value
        while isinstance(inner, (dict, list)) and inner and (holder is None or pick.random() < 0.75):
            holder, key = inner, pick.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
            inner = inner[key]
        if holder is None:
            return copy.deepcopy(pick.choice(VALUES))
        match pick.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.append(copy.deepcopy(inner))
            case 2 if isinstance(holder, dict):
                holder[pick.choice(["", "x", "kind", "task", "model"])] = copy.deepcopy(inner)
            case _:
                holder[key] = copy.deepcopy(pick.choice(VALUES))
    return value


def altered(raw: bytes, pick: random.Random) -> bytes:
    """A JSON file altered in one of both ways."""
    if pick.random() < 0.4:
        return mutated_bytes(raw, pick)
    return json.dumps(mutated_json(json.loads(raw), pick)).encode()
