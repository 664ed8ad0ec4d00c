"""Checkpoints: what was saved comes back bit for bit, or an error says what was altered."""

import asyncio
import errno
import hashlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.errors import CheckpointError
from jaxgen.store import CheckpointStore, DamagedCheckpointError, UnreadableCheckpointError
from jaxgen.store import format as fmt


class State(NamedTuple):
    params: dict
    optimizer: tuple
    step: jax.Array


def make_state(seed=0, hidden=4):
    kernel = np.random.default_rng(seed).normal(size=(hidden, 3)).astype("float32")
    params = {"cell": {"kernel": jnp.asarray(kernel), "bias": jnp.full((3,), 0.1, jnp.bfloat16)}}
    optimizer = optax.adamw(1e-3)
    gradients = jax.tree.map(lambda p: p * 0.3, params)
    return State(params, optimizer.update(gradients, optimizer.init(params), params)[1], jnp.int32(7))


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def assert_bitwise_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def flip_bit(path: Path, position: int):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size * (p.name != fmt.RECORD))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints of steps 10 and 20, to be copied by those who alter it."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    store = CheckpointStore(folder)
    store.save(10, make_state(1), {"position": 10}, metric=2.0)
    store.save(20, make_state(2), {"position": 20}, metric=3.0)
    return folder


@pytest.fixture
def store(saved, tmp_path):
    return CheckpointStore(shutil.copytree(saved, tmp_path / "checkpoints"))


def test_parameters_and_adamw_state_come_back_bit_for_bit_in_their_classes(store):
    state, _ = store.restore(20, like=abstract(make_state()))
    assert_bitwise_equal(state, make_state(2))


@pytest.mark.parametrize("name", ["[b]x", "what?", "all *", "{a,b}", "~", "a b é"])
def test_a_folder_may_have_any_name(name, tmp_path):
    folder = tmp_path / name / "checkpoints"
    folder.parent.mkdir()
    CheckpointStore(folder).save(3, make_state(), {})
    assert_bitwise_equal(CheckpointStore(folder).restore(like=abstract(make_state()))[0], make_state())


def test_host_json_comes_back_exactly(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    host = {"position": 2**60, "loss": 0.1 + 0.2, "best": None, "order": [1, [2.5e-310]], "text": "é\ud800"}
    store.save(1, make_state(), host)
    assert store.restore()[1] == host == store.host(1)


def test_without_like_the_state_is_nested_dictionaries(store):
    state, _ = store.restore(10)
    assert set(state) == {"params", "optimizer", "step"}
    assert_bitwise_equal(state["params"], make_state(1).params)


def test_parameters_alone_can_be_restored(store):
    params, host = store.restore_params(10, like=abstract(make_state().params))
    assert_bitwise_equal(params, make_state(1).params)
    assert host == {"position": 10}


def test_restored_arrays_can_be_donated(store):
    state, _ = store.restore(20, like=abstract(make_state()))
    doubled = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)(state)
    np.testing.assert_array_equal(doubled.params["cell"]["kernel"], 2 * make_state(2).params["cell"]["kernel"])


def test_unusual_leaves_survive(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    state = {
        "empty": np.zeros((0, 3), "float32"),
        "a/b.c%": np.array([True, False]),
        "": np.float32([math.nan, -0.0, math.inf]),
        "wide": np.arange(3, dtype="int64") + 2**40,
        "transposed": np.arange(6, dtype="uint32").reshape(2, 3).T,
        "none": None,
        "list": [np.float64(1.5), np.uint8(3)],
    }
    store.save(0, state, {})
    assert_bitwise_equal(store.restore(like=state)[0], jax.tree.map(np.asarray, state))
    assert set(store.restore()[0]) == set(state) - {"none"}


def test_a_state_without_any_number_can_be_saved(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(0, {"empty": np.zeros((0,), "float32")}, {})
    assert store.restore()[0]["empty"].shape == (0,)


def test_a_typed_key_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"dropout is a typed PRNG key; save jax\.random\.key_data"):
        CheckpointStore(tmp_path / "checkpoints").save(0, {"dropout": jax.random.key(0)}, {})


def test_nan_in_the_host_json_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        CheckpointStore(tmp_path / "checkpoints").save(0, make_state(), {"best": math.nan})
    assert os.listdir(tmp_path / "checkpoints") == []


def test_the_latest_and_the_best_are_kept_and_known_after_reopening(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep_latest=2)
    for step, metric in enumerate([3.0, 1.0, math.nan, -math.inf, 2.0, None]):
        store.save(step, {"x": np.float32([step])}, {}, metric)
    reopened = CheckpointStore(tmp_path / "checkpoints")
    assert (reopened.steps(), reopened.best(), reopened.latest()) == ([1, 4, 5], 1, 5)
    assert reopened.restore(1)[0]["x"] == 1


def test_a_metric_that_is_not_finite_is_never_best(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(1, {"x": np.float32([1])}, {}, metric=math.nan)
    store.save(2, {"x": np.float32([1])}, {}, metric=-math.inf)
    assert store.best() is None


def test_the_earliest_of_equal_metrics_is_best(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    for step in (5, 6):
        store.save(step, {"x": np.float32([1])}, {}, metric=1)
    assert store.best() == 5


def test_saving_a_step_again_replaces_it_every_time(store):
    for seed in (3, 4, 5):
        store.save(20, make_state(seed), {"again": seed})
    assert_bitwise_equal(store.restore(20, like=make_state())[0], make_state(5))
    assert store.steps() == [10, 20]
    assert len(os.listdir(store.directory)) == 2


def test_saving_the_same_state_again_without_a_metric_keeps_its_metric(store):
    store.save(10, make_state(1), {"signal": True})
    assert (store.metric(10), store.best(), store.host(10)) == (2.0, 10, {"signal": True})


def test_a_step_saved_out_of_order_is_not_removed_at_once(store):
    store.save(5, make_state(5), {})
    assert 5 in store.steps()


def test_truncation_drops_the_later_steps(store):
    store.truncate(10)
    assert store.steps() == [10]
    assert os.listdir(store.directory) == ["00000010"]


def test_the_digest_follows_the_arrays_alone(store, tmp_path):
    (tmp_path / "other").mkdir()
    other = CheckpointStore(tmp_path / "other" / "checkpoints")
    other.save(99, make_state(1), {"other": "host"})
    assert other.digest() == store.digest(10) != store.digest(20)
    assert len(other.digest()) == 16


def test_a_wrong_shape_is_named_with_both_shapes_before_arrays_are_read(store, monkeypatch):
    monkeypatch.setattr("jaxgen.store.orbax_io.read_arrays", lambda *_: pytest.fail("arrays were read"))
    with pytest.raises(CheckpointError) as caught:
        store.restore(20, like=abstract(make_state(hidden=5)))
    assert "params/cell/kernel has the shape (4, 3); the model has (5, 3)" in str(caught.value)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cell: cell | {"peephole": cell["bias"]}, "has no params/cell/peephole, which the model needs"),
        (lambda cell: {"kernel": cell["kernel"]}, "has params/cell/bias, which the model lacks"),
        (
            lambda cell: cell | {"bias": cell["bias"].astype("float32")},
            "params/cell/bias has the dtype bfloat16; the model has float32",
        ),
    ],
)
def test_another_tree_or_dtype_is_named(store, change, message):
    like = make_state()
    like = like._replace(params={"cell": change(like.params["cell"])})
    with pytest.raises(CheckpointError, match=message):
        store.restore(20, like=abstract(like))


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


def rewrite_record(folder: Path, change) -> None:
    """Forge a record whose own checksum is right."""
    record = json.loads((folder / fmt.RECORD).read_bytes())["record"]
    change(record)
    (folder / fmt.RECORD).write_text(json.dumps({"sha256": fmt._record_sha256(record), "record": record}))


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


def test_another_shape_is_not_taken_for_damage(store):
    with pytest.raises(CheckpointError, match="has the shape"):
        store.restore_newest_good(like=make_state(hidden=5))


@pytest.mark.parametrize("ask", [CheckpointStore.restore, CheckpointStore.restore_newest_good, CheckpointStore.digest])
def test_no_checkpoint_at_all_says_how_to_make_one(tmp_path, ask):
    with pytest.raises(CheckpointError, match=r"There is no checkpoint in .*python train\.py"):
        ask(CheckpointStore(tmp_path / "checkpoints"))


def test_a_step_that_is_not_there_names_those_that_are(store):
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 15 .* Choose one of: 10, 20"):
        store.restore(15)


def test_a_save_that_fails_keeps_the_former_and_leaves_nothing(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(CheckpointError, match=r"Could not write .*checkpoints: No space left on device"):
        store.save(30, make_state(3), {})
    monkeypatch.undo()
    assert sorted(os.listdir(store.directory)) == ["00000010", "00000020"]
    assert_bitwise_equal(store.restore(like=make_state())[0], make_state(2))


def test_a_run_folder_that_vanished_is_not_made_again(tmp_path):
    with pytest.raises(CheckpointError, match=r"Could not write .*checkpoints"):
        CheckpointStore(tmp_path / "gone" / "checkpoints").save(1, make_state(), {})
    assert not (tmp_path / "gone").exists()


def test_reading_changes_nothing_on_the_disk(store):
    (store.directory / ".tmp-30-1-abc").mkdir()
    before = sorted(p.relative_to(store.directory) for p in store.directory.rglob("*"))
    reader = CheckpointStore(store.directory)
    reader.restore()
    reader.best()
    assert sorted(p.relative_to(store.directory) for p in store.directory.rglob("*")) == before


def test_half_written_and_half_removed_folders_are_ignored_and_removed_by_the_next_save(store, tmp_path):
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "thesis.tex").touch()
    shutil.copytree(store.directory / "00000020", store.directory / ".tmp-30-1-abc")
    (store.directory / ".tmp-others").symlink_to(tmp_path / "others")
    (store.directory / "notes").mkdir()
    assert store.steps() == [10, 20]
    store.save(30, make_state(), {})
    assert sorted(os.listdir(store.directory)) == [".tmp-others", "00000010", "00000020", "00000030", "notes"]
    assert (tmp_path / "others" / "thesis.tex").exists()


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


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
@pytest.mark.parametrize("place", ["format.file_sha256", "format.read_bounded"])
def test_what_cannot_be_read_now_is_neither_damaged_nor_dropped(store, monkeypatch, number, place):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    before = tree(store.directory)
    monkeypatch.setattr(f"jaxgen.store.{place}", refuse)
    for ask in (store.restore, store.restore_newest_good, lambda: store.truncate(10)):
        with pytest.raises(UnreadableCheckpointError, match=rf"step 20 cannot be read now: .*{os.strerror(number)}"):
            ask()
    assert tree(store.directory) == before


def test_a_file_that_was_not_saved_is_refused(store):
    (store.directory / "00000020" / "arrays" / "more").touch()
    with pytest.raises(DamagedCheckpointError, match="arrays/more is not one of the files that were saved"):
        store.restore()


def link_a_file(folder: Path, elsewhere: Path):
    victim = largest_file(folder)
    victim.rename(elsewhere)
    victim.symlink_to(elsewhere)


def link_a_folder(folder: Path, elsewhere: Path):
    (folder / "arrays").rename(elsewhere)
    (folder / "arrays").symlink_to(elsewhere)


def link_the_checkpoint(folder: Path, elsewhere: Path):
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)


def link_the_record(folder: Path, elsewhere: Path):
    (folder / fmt.RECORD).rename(elsewhere)
    (folder / fmt.RECORD).symlink_to(elsewhere)


def make_a_pipe(folder: Path, elsewhere: Path):
    victim = largest_file(folder)
    victim.unlink()
    os.mkfifo(victim)


def leave_the_folder(folder: Path, elsewhere: Path):
    elsewhere.write_bytes(b"secret")
    digest = hashlib.sha256(b"secret").hexdigest()
    names = {"../../elsewhere", str(elsewhere), "arrays/../../../elsewhere"}
    rewrite_record(folder, lambda record: record["files"].update({n: {"size": 6, "sha256": digest} for n in names}))


@pytest.mark.parametrize(
    ("attack", "problem"),
    [
        (link_a_file, "arrays/.* is a link"),
        (link_a_folder, "arrays.* is missing"),
        (link_the_checkpoint, "00000020 is a link"),
        (link_the_record, r"checkpoint\.json: is a link"),
        (make_a_pipe, "arrays/.* is not a regular file"),
        (leave_the_folder, "elsewhere is missing"),
    ],
)
def test_nothing_outside_of_a_checkpoint_is_read_or_changed(store, tmp_path, attack, problem):
    elsewhere = tmp_path / "elsewhere"
    attack(store.directory / "00000020", elsewhere)
    before = tree(elsewhere) if elsewhere.is_dir() else elsewhere.exists() and elsewhere.read_bytes()
    with pytest.raises(DamagedCheckpointError, match=problem):
        store.restore(20)
    store.truncate(store.restore_newest_good()[0])
    for step in (30, 40, 50):
        store.save(step, make_state(step), {}, metric=1.0)
    assert (tree(elsewhere) if elsewhere.is_dir() else elsewhere.exists() and elsewhere.read_bytes()) == before


def test_a_link_in_place_of_the_folder_is_refused_and_what_it_names_is_left_alone(store, tmp_path):
    (tmp_path / "theirs" / "20261122").mkdir(parents=True)
    (tmp_path / "theirs" / ".tmp-notes").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "theirs")
    linked = CheckpointStore(link)
    for ask in (linked.latest, linked.clean, linked.restore, lambda: linked.save(1, make_state(), {})):
        with pytest.raises(CheckpointError, match="link is a link: a run keeps its checkpoints in a folder"):
            ask()
    assert sorted(os.listdir(tmp_path / "theirs")) == [".tmp-notes", "20261122"]


def test_a_folder_that_was_removed_while_training_is_not_made_again(store):
    store.save(30, make_state(), {})
    shutil.rmtree(store.directory)
    with pytest.raises(CheckpointError, match="the folder was removed while the run went on"):
        store.save(40, make_state(), {})
    assert not store.directory.exists()


def test_a_store_works_inside_a_running_event_loop(tmp_path):
    async def notebook_cell():
        store = CheckpointStore(tmp_path / "checkpoints")
        store.save(1, make_state(), {})
        return store.restore(like=make_state())[0]

    assert_bitwise_equal(asyncio.run(notebook_cell()), make_state())


KILLED = """
import os, sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from jaxgen.store import CheckpointStore
assert not [name for name in sys.modules if name.startswith(("orbax", "matplotlib"))]
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
state = {"x": jax.device_put(np.arange(8.0, dtype="float32"), sharding)}
store = CheckpointStore(sys.argv[1])
store.save(1, state, {})
store.restore()
os.rename = lambda *_: os._exit(137)
store.save(2, state, {})
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A trainer on two devices that was killed while it saved step 2, just before the end."""
    folder = tmp_path_factory.mktemp("killed") / "checkpoints"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-W", "error", "-c", KILLED, str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120), folder


def test_saving_and_restoring_say_nothing_to_the_user(killed):
    process, _ = killed
    assert (process.returncode, process.stdout, process.stderr) == (137, "", "")


def test_a_kill_in_the_middle_of_a_save_leaves_the_former_checkpoint(killed):
    _, folder = killed
    assert len(os.listdir(folder)) == 2  # the half-written one is there
    assert CheckpointStore(folder).steps() == [1]


def test_what_two_devices_saved_one_device_restores(killed):
    _, folder = killed
    state, _ = CheckpointStore(folder).restore(like={"x": jax.ShapeDtypeStruct((8,), "float32")})
    np.testing.assert_array_equal(state["x"], np.arange(8.0))
    assert len(state["x"].sharding.device_set) == 1


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"record": {}, "sha256": ""}'])
def test_a_record_that_is_none_is_damage(store, content):
    (store.directory / "00000020" / fmt.RECORD).write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"step 20 is damaged: .*checkpoint\.json"):
        store.restore()


def test_a_state_without_params_says_so(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(1, {"x": np.float32([1])}, {})
    with pytest.raises(CheckpointError, match="holds no params"):
        store.restore_params()


def test_paths_that_would_collide_are_refused(tmp_path):
    state = {
        "layers": [{1: np.float32([1])}, optax.EmptyState()],
        "a": State({"x": np.float32([1])}, (), np.float32([2])),
    }
    names = [name for name, _ in fmt.leaf_names(state)]
    assert names == ["a/params/x", "a/step", "layers/0/1"]
    with pytest.raises(ValueError, match="have the same path"):
        fmt.leaf_names(Twins())


@jax.tree_util.register_pytree_with_keys_class
class Twins:
    """A node whose two children have keys that read the same."""

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.DictKey(key), np.float32([1])) for key in (1, "1")], None

    @classmethod
    def tree_unflatten(cls, _, __):
        return cls()


def test_a_store_that_keeps_nothing_and_a_negative_step_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keep_latest is 0"):
        CheckpointStore(tmp_path, keep_latest=0)
    with pytest.raises(ValueError, match="must not be negative"):
        CheckpointStore(tmp_path).save(-1, {}, {})
