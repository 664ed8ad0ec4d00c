"""Checkpoints that were altered, cut short, removed or cannot be read now: reported, and never silently replaced."""

import errno
import os
import resource
import shutil
import tracemalloc
from pathlib import Path

import pytest
from kept_states import assert_bitwise_equal, flip_bit, forge_file, forge_manifest, largest_file, make_state, tree

from jaxgen.errors import CheckpointError
from jaxgen.runs import manifest as manifest_module
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.manifest import (
    MANIFEST,
    MODEL,
    DamagedCheckpointError,
    UnreadableCheckpointError,
    decode_arrays,
    encode_arrays,
)


def test_a_flipped_bit_in_any_file_is_detected_and_the_file_named(saved, tmp_path):
    folder = saved / "00000010"
    for path in [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]:
        copy = shutil.copytree(saved, tmp_path / "copy", dirs_exist_ok=True)
        name = path.relative_to(folder)
        flip_bit(copy / folder.name / name, path.stat().st_size // 2)
        with pytest.raises(DamagedCheckpointError, match=rf"step 10 .*{name}"):
            CheckpointStore(copy).restore(10)


@pytest.mark.parametrize("spoil", [os.remove, lambda path: os.truncate(path, 5)])
def test_a_file_removed_or_cut_short_is_detected(store, spoil):
    spoil(largest_file(store.directory / "00000020"))
    with pytest.raises(DamagedCheckpointError, match=r"step 20 .*\.safetensors"):
        store.restore()


def test_an_array_other_than_the_one_recorded_is_detected(store):
    folder = store.directory / "00000020"
    forge_manifest(folder, lambda manifest: manifest["leaves"]["step"].update(sha256="0" * 64))
    with pytest.raises(DamagedCheckpointError, match=r"array step .* checksum"):
        store.restore()


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays | {"cell.kernel": arrays["cell.kernel"] + 1},
        lambda arrays: arrays | {"cell.kernel": arrays["cell.kernel"].reshape(3, 4)},
        lambda arrays: arrays | {"cell.kernel": arrays["cell.kernel"].view("int32")},
        lambda arrays: arrays | {"cell.more": arrays["cell.bias"][:0]},
        lambda arrays: {"cell.kernel": arrays["cell.kernel"], "cell.other": arrays["cell.bias"]},
    ],
    ids=["value", "shape", "dtype", "another array", "another name"],
)
def test_another_array_is_detected_though_the_digest_of_its_file_was_forged(store, change):
    folder = store.directory / "00000020"
    forge_file(folder, MODEL, encode_arrays(change(decode_arrays((folder / MODEL).read_bytes()))))
    for restore in (store.restore, store.restore_params):
        with pytest.raises(DamagedCheckpointError, match=r"cell\.(kernel|bias|more|other)"):
            restore(20)


@pytest.mark.parametrize("content", [b"\xff" * 400, b"\x02" + bytes(7) + b"{}" + bytes(400), bytes(400)])
def test_a_file_that_is_no_safetensors_file_is_damage_though_its_digest_was_forged(store, content):
    forge_file(store.directory / "00000020", MODEL, content)
    with pytest.raises(DamagedCheckpointError, match=r"step 20 .*model\.safetensors"):
        store.restore()


def test_a_forged_shape_is_refused_before_allocation(store):
    folder = store.directory / "00000020"
    forge_manifest(folder, lambda manifest: manifest["leaves"]["params.cell.kernel"].update(shape=[10**9, 10**6]))
    with pytest.raises(CheckpointError, match=r"step 20 .* 3,725,290 GiB"):
        store.restore()
    for shape in ([900, 900], [3, 4], [2]):
        forge_manifest(folder, lambda manifest: manifest["leaves"]["params.cell.kernel"].update(shape=shape))  # noqa: B023
        with pytest.raises(DamagedCheckpointError, match=r"step 20 .*(model\.safetensors|params\.cell\.kernel)"):
            store.restore()


def test_names_of_many_parts_are_refused_before_they_are_compared(store):
    names = {".".join(["a"] * 2**17): {"shape": [1], "dtype": "float32", "sha256": ""}}
    forge_manifest(store.directory / "00000020", lambda manifest: manifest["leaves"].update(names))
    tracemalloc.start()
    try:
        with pytest.raises(DamagedCheckpointError, match="manifest"):
            store.restore()
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()


def test_a_forged_size_is_refused_before_allocation(store):
    """A sparse file of terabytes, with a manifest that agrees: its arrays do not need so much."""
    path = store.directory / "00000020" / MODEL
    os.truncate(path, 2**42)
    forge_manifest(path.parent, lambda manifest: manifest["files"][MODEL].update(size=2**42))
    with pytest.raises(DamagedCheckpointError, match=r"model\.safetensors .* bytes"):
        store.restore()


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["leaves"]["step"].pop("shape"),
        lambda manifest: manifest["leaves"]["step"].update(more=1),
        lambda manifest: manifest["leaves"]["step"].update(shape=[True]),
        lambda manifest: manifest["leaves"]["step"].update(shape=[0, 2**62, 2**62]),
        lambda manifest: manifest["leaves"]["step"].update(shape="12"),
        lambda manifest: manifest["leaves"]["step"].update(dtype="object"),
        lambda manifest: manifest["leaves"]["step"].update(dtype=["f4"]),
        lambda manifest: manifest["leaves"].update({"step.inner": manifest["leaves"]["step"]}),
        lambda manifest: manifest["leaves"].update({"a..b": manifest["leaves"]["step"]}),
        lambda manifest: manifest["leaves"].update(step=None),
        lambda manifest: manifest["files"][MODEL].update(size="1"),
        lambda manifest: manifest["files"][MODEL].update(size=-1),
        lambda manifest: manifest["files"][MODEL].pop("sha256"),
        lambda manifest: manifest["files"].pop(MODEL),
        lambda manifest: manifest["files"].update({"more": manifest["files"][MODEL]}),
        lambda manifest: manifest.update(files=[]),
        lambda manifest: manifest.update(host=[]),
        lambda manifest: manifest.update(metric="best"),
        lambda manifest: manifest.update(metrics={"ten": 1.0}),
        lambda manifest: manifest.update(metrics={"10": []}),
        lambda manifest: manifest.update(version="2"),
        lambda manifest: manifest.update(more=1),
        lambda manifest: manifest.pop("metrics"),
        lambda manifest: manifest.pop("leaves"),
    ],
)
def test_a_forged_manifest_that_is_none_is_damage(store, change):
    forge_manifest(store.directory / "00000020", change)
    with pytest.raises(DamagedCheckpointError, match=r"step 20 .*manifest\.json"):
        store.restore()


def test_a_checkpoint_of_a_later_format_is_refused_and_is_not_damage(store):
    forge_manifest(store.directory / "00000020", lambda manifest: manifest.update(version=4))
    check_refused(store, "format 4")


def test_a_checkpoint_of_jaxgen_0_1_is_refused_and_is_not_damage(store):
    folder = store.directory / "00000020"
    shutil.rmtree(folder)
    (folder / "arrays").mkdir(parents=True)
    (folder / "checkpoint.json").write_text("{}")
    check_refused(store, r"jaxgen 0\.1")


def test_checkpoints_that_were_exchanged_are_refused_and_are_not_damage(store):
    first, second = (store.directory / name for name in ("00000010", "00000020"))
    first.rename(first.with_name("x"))
    second.rename(first)
    first.with_name("x").rename(second)
    check_refused(store, r"00000020 holds the checkpoint of step 10")
    with pytest.raises(CheckpointError, match="holds the checkpoint"):
        store.best()


def test_a_checkpoint_of_another_run_is_refused_and_is_not_damage(store):
    """Whichever of the two it is: the latest one, and the best one."""
    bound = CheckpointStore(store.directory, run_digest="mine")
    for name in ("00000020", "00000010"):
        for folder in store.directory.iterdir():
            mine = "theirs" if folder.name == name else "mine"
            forge_manifest(folder, lambda manifest, mine=mine: manifest.update(run_digest=mine))
        for ask in (bound.best, bound.restore_newest_good):
            with pytest.raises(CheckpointError, match=f"{name} holds a checkpoint of another run"):
                ask()
        assert CheckpointStore(store.directory).best() == 10  # the files themselves are good
    forge_manifest(store.directory / "00000020", lambda manifest: manifest.update(run_digest="theirs"))
    check_refused(bound, "another run")


def test_a_checkpoint_keeps_the_digest_of_its_run(tmp_path):
    mine, theirs = (CheckpointStore(tmp_path / "c", run_digest=name) for name in ("mine", "theirs"))
    mine.save(1, make_state(), {})
    assert mine.restore_newest_good()[0] == 1
    with pytest.raises(CheckpointError, match="another run"):
        theirs.save(1, make_state(), {})
    other = CheckpointStore(tmp_path / "other", run_digest="theirs")
    other.save(1, make_state(), {})
    assert other.digest() != mine.digest()


def check_refused(store, word):
    """All that reads or drops the checkpoint of step 20 raises an error with ``word``, and nothing changes."""
    before = tree(store.directory)
    for ask in (store.restore, store.restore_params, store.restore_newest_good, store.host, lambda: store.truncate(10)):
        with pytest.raises(CheckpointError, match=word) as refused:
            ask()
        assert refused.value.exit_code == 4
        assert not isinstance(refused.value, DamagedCheckpointError)
    assert tree(store.directory) == before


def test_the_newest_good_checkpoint_is_found_and_the_problem_told(store):
    flip_bit(largest_file(store.directory / "00000020"), 100)
    step, state, host, problems = store.restore_newest_good(like=make_state())
    assert (step, host, len(problems)) == (10, {"position": 10}, 1)
    assert "step 20" in problems[0]
    assert_bitwise_equal(state, make_state(1))


def test_all_checkpoints_damaged_is_an_error(store):
    for name in ("00000010", "00000020"):
        flip_bit(largest_file(store.directory / name), 100)
    with pytest.raises(CheckpointError, match=r"step 20 .*step 10 "):
        store.restore_newest_good()


def test_where_all_are_damaged_none_is_said_to_be_set_aside_and_none_is(store):
    for name in ("00000010", "00000020"):
        (store.directory / name / MANIFEST).write_text("{}")
    before = tree(store.directory)
    with pytest.raises(CheckpointError, match=r"step 20 .*step 10 ") as told:
        store.restore_newest_good()
    assert "set aside" not in str(told.value)
    assert tree(store.directory) == before


def cut_manifest(folder: Path):
    os.truncate(folder / MANIFEST, 100)


def flip_array(folder: Path):
    flip_bit(largest_file(folder), 100)


def remove_manifest(folder: Path):
    os.remove(folder / MANIFEST)


DAMAGES = pytest.mark.parametrize("damage", [cut_manifest, flip_array, remove_manifest, shutil.rmtree])


@DAMAGES
def test_a_damaged_best_checkpoint_is_not_replaced_by_another_in_silence(store, damage):
    damage(store.directory / "00000010")
    for _ in range(2):
        assert store.best() == 10
        with pytest.raises(CheckpointError, match="step 10 "):
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
    cut_manifest(store.directory / "00000020")
    with pytest.raises(DamagedCheckpointError, match=r"step 20 .*manifest\.json"):
        store.best()


def test_damaged_checkpoints_are_set_aside_and_nothing_removes_them(store):
    for _ in range(2):
        flip_array(store.directory / "00000020")
        before = (largest_file(store.directory / "00000020")).read_bytes()
        step, _, _, problems = store.restore_newest_good()
        assert str(store.directory / "00000020.damaged") in problems[0]
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


def test_a_damaged_manifest_does_not_stop_training_and_is_kept(store):
    remove_manifest(store.directory / "00000020")
    for step in (30, 40, 50):
        store.save(step, make_state(step), {}, metric=float(step))
    assert store.steps() == [10, 20, 40, 50]


def test_without_free_file_descriptors_nothing_is_taken_for_damaged_or_removed(store):
    before, limits = tree(store.directory), resource.getrlimit(resource.RLIMIT_NOFILE)
    asks = (store.restore, store.restore_newest_good, store.best, lambda: store.truncate(10), store.clean)
    for ask in asks:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            with pytest.raises(UnreadableCheckpointError, match="Too many open files"):
                ask()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert tree(store.directory) == before


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOMEM])
@pytest.mark.parametrize("readers", [("file_sha256", "_read_and_hash"), ("read_bounded",)], ids=["files", "manifest"])
def test_what_cannot_be_read_now_is_neither_damaged_nor_dropped(store, monkeypatch, number, readers):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    before = tree(store.directory)
    for reader in readers:
        monkeypatch.setattr(manifest_module, reader, refuse)
    for ask in (store.restore, store.restore_params, store.restore_newest_good, lambda: store.truncate(10)):
        with pytest.raises(UnreadableCheckpointError, match=rf"step 20 .*{os.strerror(number)}"):
            ask()
    assert tree(store.directory) == before


def test_a_checkpoint_that_is_removed_while_it_is_read_is_reported(store, monkeypatch):
    read = manifest_module.read_files
    monkeypatch.setattr(
        manifest_module, "read_files", lambda folder, *rest: (shutil.rmtree(folder), read(folder, *rest))
    )
    with pytest.raises(DamagedCheckpointError, match=r"step 20 .* is missing"):
        store.restore(20)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"record": {}, "sha256": ""}'])
def test_a_manifest_that_is_none_is_damage(store, content):
    (store.directory / "00000020" / MANIFEST).write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"step 20 .*manifest\.json"):
        store.restore()
