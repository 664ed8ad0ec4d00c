"""Checkpoints that were altered, cut short, removed or cannot be read now: told, and none takes their place unsaid."""

import errno
import os
import resource
import shutil
from pathlib import Path

import pytest
from kept_states import assert_bitwise_equal, flip_bit, largest_file, make_state, rewrite_record, tree

from jaxgen.errors import CheckpointError
from jaxgen.runs import manifest as fmt
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.manifest import DamagedCheckpointError, UnreadableCheckpointError


def test_a_flipped_bit_in_any_file_is_detected_and_the_file_named(saved, tmp_path):
    folder = saved / "00000010"
    for path in [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]:
        copy = shutil.copytree(saved, tmp_path / "copy", dirs_exist_ok=True)
        name = path.relative_to(folder)
        flip_bit(copy / folder.name / name, path.stat().st_size // 2)
        with pytest.raises(DamagedCheckpointError, match=rf"checkpoint of step 10 is damaged: .*{name}"):
            CheckpointStore(copy).restore(10)


@pytest.mark.parametrize("spoil", [os.remove, lambda path: os.truncate(path, 5)])
def test_a_file_removed_or_cut_short_is_detected(store, spoil):
    spoil(largest_file(store.directory / "00000020"))
    with pytest.raises(DamagedCheckpointError, match="step 20 is damaged: arrays/"):
        store.restore()


def test_an_array_other_than_the_one_recorded_is_detected(store):
    folder = store.directory / "00000020"
    rewrite_record(folder, lambda record: record["leaves"]["step"].update(sha256="0" * 64))
    with pytest.raises(DamagedCheckpointError, match="the array step does not match its checksum"):
        store.restore()


def test_a_forged_shape_is_refused_before_allocation(store):
    folder = store.directory / "00000020"
    rewrite_record(folder, lambda record: record["leaves"]["params/cell/kernel"].update(shape=[10**9, 10**6]))
    with pytest.raises(CheckpointError, match=r"arrays of the checkpoint of step 20 take 3,725,290 GiB"):
        store.restore()
    rewrite_record(folder, lambda record: record["leaves"]["params/cell/kernel"].update(shape=[9, 9]))
    with pytest.raises(DamagedCheckpointError, match="params/cell/kernel is not there in the shape that was saved"):
        store.restore()


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["leaves"]["step"].pop("shape"),
        lambda record: record["leaves"]["step"].update(more=1),
        lambda record: record["leaves"]["step"].update(shape=[True]),
        lambda record: record["leaves"]["step"].update(shape=[0, 2**62, 2**62]),
        lambda record: record["leaves"]["step"].update(shape="12"),
        lambda record: record["leaves"]["step"].update(dtype="object"),
        lambda record: record["leaves"]["step"].update(dtype=["f4"]),
        lambda record: record["leaves"].update({"step/inner": record["leaves"]["step"]}),
        lambda record: record["leaves"].update({"a//b": record["leaves"]["step"]}),
        lambda record: record["leaves"].update(step=None),
        lambda record: record["files"].update({"arrays/_METADATA": {"size": "1", "sha256": ""}}),
        lambda record: record["files"].update({"arrays/_METADATA": {"size": 1}}),
        lambda record: record.update(files=[]),
        lambda record: record.update(host=[]),
        lambda record: record.update(metric="best"),
        lambda record: record.update(metrics={"ten": 1.0}),
        lambda record: record.update(metrics={"10": []}),
        lambda record: record.pop("leaves"),
    ],
)
def test_a_forged_record_that_is_none_is_damage(store, change):
    rewrite_record(store.directory / "00000020", change)
    with pytest.raises(DamagedCheckpointError, match=r"step 20 is damaged: checkpoint\.json is not the record"):
        store.restore()


def test_a_record_written_before_it_knew_those_beside_it_is_read(store):
    rewrite_record(store.directory / "00000020", lambda record: record.pop("metrics"))
    assert store.restore()[1] == {"position": 20}
    assert store.best() == 10


def test_a_checkpoint_of_a_later_format_says_so(store):
    rewrite_record(store.directory / "00000020", lambda record: record.update(version=2))
    with pytest.raises(CheckpointError, match="written in format 2"):
        store.restore()


def test_the_newest_good_checkpoint_is_found_and_the_problem_told(store):
    flip_bit(largest_file(store.directory / "00000020"), 100)
    step, state, host, problems = store.restore_newest_good(like=make_state())
    assert (step, host, len(problems)) == (10, {"position": 10}, 1)
    assert "step 20" in problems[0]
    assert_bitwise_equal(state, make_state(1))


def test_all_checkpoints_damaged_is_an_error(store):
    for name in ("00000010", "00000020"):
        flip_bit(largest_file(store.directory / name), 100)
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* is good"):
        store.restore_newest_good()


def test_where_all_are_damaged_none_is_said_to_be_set_aside_and_none_is(store):
    for name in ("00000010", "00000020"):
        (store.directory / name / fmt.RECORD).write_text("{}")
    before = tree(store.directory)
    with pytest.raises(
        CheckpointError, match=r"step 20 is damaged: .* step 10 is damaged: .* Nothing was changed\."
    ) as told:
        store.restore_newest_good()
    assert "set aside" not in str(told.value)
    assert tree(store.directory) == before


def cut_record(folder: Path):
    os.truncate(folder / fmt.RECORD, 100)


def flip_array(folder: Path):
    flip_bit(largest_file(folder), 100)


def remove_record(folder: Path):
    os.remove(folder / fmt.RECORD)


DAMAGES = pytest.mark.parametrize("damage", [cut_record, flip_array, remove_record, shutil.rmtree])


@DAMAGES
def test_a_damaged_best_checkpoint_is_not_replaced_by_another_in_silence(store, damage):
    damage(store.directory / "00000010")
    for _ in range(2):
        assert store.best() == 10
        with pytest.raises(
            CheckpointError, match=r"step 10 is damaged: (checkpoint\.json|the content of arrays/)|of step 10"
        ):
            store.restore(store.best())
        store.save(30, make_state(3), {}, metric=4.0)
    assert (store.directory / "00000010").exists() == (damage is not shutil.rmtree)


@DAMAGES
def test_a_run_that_goes_on_sets_a_damaged_best_checkpoint_aside_and_says_so(store, damage):
    store.save(30, make_state(3), {}, metric=2.5)
    damage(store.directory / "00000010")
    step, _, _, problems = store.restore_newest_good(like=make_state())
    assert step == 30
    assert len(problems) == 1
    assert "step 10" in problems[0]
    store.truncate(step)
    store.save(40, make_state(4), {})
    again = CheckpointStore(store.directory)
    assert (again.steps(), again.best(), again.restore_newest_good()[3]) == ([30, 40], 30, [])
    assert "00000010.damaged" in os.listdir(store.directory)


def test_without_the_metric_of_a_damaged_checkpoint_no_other_is_called_the_best(store):
    cut_record(store.directory / "00000020")
    with pytest.raises(DamagedCheckpointError, match=r"step 20 is damaged: checkpoint\.json"):
        store.best()


def test_damaged_checkpoints_are_set_aside_and_nothing_removes_them(store):
    for _ in range(2):
        flip_array(store.directory / "00000020")
        before = (largest_file(store.directory / "00000020")).read_bytes()
        step, _, _, problems = store.restore_newest_good()
        assert f"It is set aside as {store.directory / '00000020.damaged'}" in problems[0]
        store.truncate(step)
        assert CheckpointStore(store.directory).latest() == store.best() == 10
        for later in (20, 30):
            store.save(later, make_state(later), {}, metric=9.0)
        store.truncate(20)
    aside = sorted(entry for entry in os.listdir(store.directory) if "damaged" in entry)
    assert aside == ["00000020.damaged", "00000020.damaged-2"]
    assert largest_file(store.directory / aside[1]).read_bytes() == before


def test_of_a_step_saved_again_the_former_serves_where_the_later_is_damaged(store):
    copy = shutil.copytree(store.directory / "00000020", store.directory / "00000020.1")
    flip_array(copy)
    step, _, host, problems = store.restore_newest_good()
    store.truncate(step)
    assert (step, host, len(problems)) == (20, {"position": 20}, 1)
    assert (store.steps(), store.host()) == ([10, 20], {"position": 20})


def test_a_damaged_record_does_not_stop_training_and_is_kept(store):
    remove_record(store.directory / "00000020")
    for step in (30, 40, 50):
        store.save(step, make_state(step), {}, metric=float(step))
    assert store.steps() == [10, 20, 40, 50]


def test_without_free_file_descriptors_nothing_is_taken_for_damaged_or_removed(store):
    before, limits = tree(store.directory), resource.getrlimit(resource.RLIMIT_NOFILE)
    asks = (store.restore, store.restore_newest_good, store.best, lambda: store.truncate(10), store.clean)
    for ask in asks:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            with pytest.raises(UnreadableCheckpointError, match=r"cannot be read now: .*Too many open files"):
                ask()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert tree(store.directory) == before


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOMEM])
@pytest.mark.parametrize("place", ["manifest.file_sha256", "manifest.read_bounded"])
def test_what_cannot_be_read_now_is_neither_damaged_nor_dropped(store, monkeypatch, number, place):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    before = tree(store.directory)
    monkeypatch.setattr(f"jaxgen.runs.{place}", refuse)
    for ask in (store.restore, store.restore_newest_good, lambda: store.truncate(10)):
        with pytest.raises(UnreadableCheckpointError, match=rf"step 20 cannot be read now: .*{os.strerror(number)}"):
            ask()
    assert tree(store.directory) == before


def test_a_checkpoint_that_is_removed_while_it_is_read_says_so(store, monkeypatch):
    monkeypatch.setattr(fmt, "check_files", lambda folder, *_: shutil.rmtree(folder))  # the last look before Orbax's
    with pytest.raises(UnreadableCheckpointError, match=r"arrays \(the folder was removed while it was read\)"):
        store.restore(20)


def test_what_orbax_says_is_told_where_the_system_says_nothing(store, monkeypatch):
    monkeypatch.setattr(fmt, "flatten", lambda tree: {}.popitem())
    with pytest.raises(UnreadableCheckpointError, match=r"gave up: KeyError: 'popitem\(\): dictionary is empty'"):
        store.restore(20)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"record": {}, "sha256": ""}'])
def test_a_record_that_is_none_is_damage(store, content):
    (store.directory / "00000020" / fmt.RECORD).write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"step 20 is damaged: .*checkpoint\.json"):
        store.restore()
