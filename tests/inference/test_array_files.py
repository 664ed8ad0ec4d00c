"""Saved-state files: arrays are restored exactly, or refused before the sizes they claim are allocated."""

import json
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxgen.errors import CheckpointError
from jaxgen.inference.state import array_file, load_arrays


def write(path, header, content=b"", size=None):
    """A safetensors file with a ``header`` (bytes, or JSON) that may say anything."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + content)
    return path


def entry(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_arrays_come_back_with_what_they_belong_to(tmp_path):
    arrays = {"a": np.arange(3), "b": np.zeros((2, 0, 3), "float32"), "c": np.asfortranarray(np.eye(2) + 1)}
    arrays |= {"d": np.float32(0.5), "e": np.arange(6, dtype="int32").reshape(2, 3).T}
    (tmp_path / "s.safetensors").write_bytes(array_file(arrays, {"model": "x"}))
    back, about = load_arrays(tmp_path / "s.safetensors")
    assert about == {"model": "x"}
    for found in (back, load_file(tmp_path / "s.safetensors")):
        assert {name: (a.dtype, a.shape, a.tolist()) for name, a in found.items()} == {
            name: (a.dtype, a.shape, a.tolist()) for name, a in arrays.items()
        }


@pytest.mark.parametrize("shape", [[10**12], [2**40, 2**40], [-1], [10**6], [0, 2**62, 2**62], [1] * 99])
@pytest.mark.parametrize("offsets", [[0, 4], [0, 4 * 10**12], [-4, 0], [4, 0]])
def test_a_header_that_claims_more_than_there_is_allocates_nothing(tmp_path, shape, offsets):
    path = write(tmp_path / "s.safetensors", {"a": entry(shape, offsets)}, b"1234")
    check_refused_cheaply(path)


@pytest.mark.parametrize("size", [2, 10**6, 2**40, 2**63, 2**64 - 1])
def test_a_size_of_the_header_that_is_none_allocates_nothing(tmp_path, size):
    check_refused_cheaply(write(tmp_path / "s.safetensors", {"a": entry([1], [0, 4])}, b"1234", size))


def test_a_header_of_many_megabytes_is_refused_before_it_is_parsed(tmp_path):
    entries = ",".join(f'"{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(300_000))
    check_refused_cheaply(write(tmp_path / "s.safetensors", f"{{{entries}}}".encode()), 2**26)


@pytest.mark.parametrize("size", [100, 2**30, 2**42])
def test_a_sparse_file_is_not_read(tmp_path, size):
    path = tmp_path / "s.safetensors"
    path.touch()
    os.truncate(path, size)
    check_refused_cheaply(path, match="larger" if size > 2**30 else "damaged")


def check_refused_cheaply(path, limit=10**6, match="damaged"):
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=match):
            load_arrays(path)
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


HEADERS = {
    "nothing": b"",
    "no JSON": b"text",
    "brackets left open": b"[" * 9_000,
    "a list": [],
    "a number": 1,
    "a tensor that is none": {"a": 1},
    "no type": {"a": {"shape": [1], "data_offsets": [0, 4]}},
    "an unknown type": {"a": entry([1], [0, 4], "O")},
    "a type that is never saved": {"a": entry([1], [0, 1], "F8_E8M0")},
    "a shape that is none": {"a": entry("1", [0, 4])},
    "overlapping tensors": {"a": entry([1], [0, 4]), "b": entry([1], [0, 4])},
    "bytes of no tensor": {"a": entry([0], [0, 0])},
    "no digest": {"a": entry([1], [0, 4])},
    "a digest without values": {"__metadata__": {"sha256": ""}, "a": entry([1], [0, 4])},
    "values that are no JSON": {"__metadata__": {"sha256": "", "about": "{"}, "a": entry([1], [0, 4])},
    "values that are no object": {"__metadata__": {"sha256": "", "about": "[]"}, "a": entry([1], [0, 4])},
    "another digest": {"__metadata__": {"sha256": "", "about": "{}"}, "a": entry([1], [0, 4])},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_none_of_ours_is_refused(name, tmp_path):
    with pytest.raises(CheckpointError, match="damaged"):
        load_arrays(write(tmp_path / "s.safetensors", HEADERS[name], b"1234"))


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_a_file_with_one_bit_flipped_is_refused(every, tmp_path):
    path = tmp_path / "s.safetensors"
    path.write_bytes(array_file({"a": np.arange(3)}, {"model": "x"}))
    raw = path.read_bytes()
    for place in range(0, 8 * len(raw), every):
        at, bit = divmod(place, 8)
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :])
        with pytest.raises(CheckpointError, match="damaged"):
            load_arrays(path)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_a_name_that_no_file_has_is_refused(name, tmp_path):
    with pytest.raises(CheckpointError, match="read"):
        load_arrays(tmp_path / name)


def test_files_that_other_programs_or_versions_wrote_are_refused(tmp_path):
    save_file({"a": np.zeros(3)}, tmp_path / "other")
    np.savez(tmp_path / "of jaxgen 0.1.npz", leaf0=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "compressed", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("0.npy", bytes(10**6))
    for path in list(tmp_path.iterdir()):
        with pytest.raises(CheckpointError, match="damaged"):
            load_arrays(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_arrays(tmp_path / "pipe")
