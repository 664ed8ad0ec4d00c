"""Arrays in one file: back as they were, or refused before anything of the size they claim is allocated."""

import io
import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from jaxgen.errors import CheckpointError
from jaxgen.inference.state import load_arrays, save_arrays


def entry(shape, content=b"", dtype="<f4"):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": shape, "fortran_order": False, "descr": dtype})
    return header.getvalue() + content


def write(path, *entries, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for number, content in enumerate(entries):
            file.writestr(f"{number}.npy", content)
    return path


def test_arrays_come_back_with_what_they_belong_to(tmp_path):
    arrays = {"a": np.arange(3), "b": np.zeros((2, 0, 3), "float32"), "c": np.asfortranarray(np.eye(2))}
    save_arrays(tmp_path / "s.npz", arrays, {"model": "x"})
    back, about = load_arrays(tmp_path / "s.npz")
    assert about == {"model": "x"}
    assert {name: (a.dtype, a.tolist()) for name, a in back.items()} == {
        n: (a.dtype, a.tolist()) for n, a in arrays.items()
    }


@pytest.mark.parametrize("shape", [(10**12,), (2**40, 2**40), (-1,), (10**6,)])
def test_a_header_that_claims_more_than_there_is_allocates_nothing(tmp_path, shape):
    path = write(tmp_path / "s.npz", entry(shape, b"1234"))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="is damaged, or no file of jaxgen's"):
            load_arrays(path)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x93NUMPY", b"\x93NUMPY\x02\x00" + b"\xff" * 9, entry((1,), b"12345678", "|O"), entry((1,), b"1" * 8)],
)
def test_an_entry_that_is_no_array_of_ours_is_refused(tmp_path, content):
    with pytest.raises(CheckpointError, match="is damaged, or no file of jaxgen's"):
        load_arrays(write(tmp_path / "s.npz", content))


HEADERS = {
    "brackets left open": b"(" * 9_000,
    "thousands of signs": b"-" * 9_000 + b"1",
    "thousands of sums": b"1+" * 3_000 + b"1",
    "no type": b"{'descr': (), 'fortran_order': False, 'shape': (1,)}",
    "keys of two kinds": b"{1: 2, 'a': 3}",
    "a size beyond all": b"{'descr': '<f4', 'fortran_order': False, 'shape': (0, " + b"9" * 400 + b")}",
    "strings of no width": b"{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000,)}",
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_no_header_is_refused_whatever_its_reader_raises(name, tmp_path):
    content = b"\x93NUMPY\x01\x00" + len(HEADERS[name]).to_bytes(2, "little") + HEADERS[name]
    with pytest.raises(CheckpointError, match="is damaged, or no file of jaxgen's"):
        load_arrays(write(tmp_path / "s.npz", content))


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_a_file_with_one_bit_flipped_is_refused_or_means_the_same(every, tmp_path):
    path, same = tmp_path / "s.npz", 0
    save_arrays(path, {"a": np.arange(3)}, {"model": "x"})
    raw = path.read_bytes()
    flags = [8 * (raw.index(sign) + at) for sign, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8))]  # "is encrypted"
    for place in [*flags, *range(0, 8 * len(raw), every)]:
        at, bit = divmod(place, 8)
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :])
        try:
            arrays, about = load_arrays(path)
        except CheckpointError:
            continue
        assert (arrays["a"].tolist(), about) == ([0, 1, 2], {"model": "x"})  # a date, for example, says nothing
        same += 1
    assert same < 4 * len(raw) / every


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_a_name_that_no_file_has_is_refused(name, tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_arrays(tmp_path / name)


def test_a_compressed_file_is_refused(tmp_path):
    path = write(tmp_path / "s.npz", entry((10**6,), bytes(4 * 10**6)), method=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_arrays(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        load_arrays(tmp_path / "pipe")
