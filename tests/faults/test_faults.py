"""Every fault: once in the lane of runs, as often as it says in the slow lane."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from . import FAULTS
from .fault import Fault, Unavailable


def tried(fault: Fault, folder: Path, number: int) -> str:
    try:
        return fault.inject(folder, np.random.default_rng(number))
    except Unavailable as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if not fault.slow], ids=lambda fault: fault.name)
def test_a_fault_is_survived(fault, tmp_path):
    assert tried(fault, tmp_path, 0)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_survived_every_time(fault, tmp_path):
    for number in range(fault.times):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert tried(fault, folder, number)
