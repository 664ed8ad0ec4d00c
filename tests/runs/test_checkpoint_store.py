"""Checkpoints: saved states come back bit for bit, the latest and the best are kept, other shapes are refused."""

import errno
import math
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from kept_states import State, abstract, assert_bitwise_equal, make_state
from safetensors.numpy import load_file

from jaxgen.cells import CELLS
from jaxgen.errors import CheckpointError
from jaxgen.fsutil import temporary_name
from jaxgen.runs import checkpoints as checkpoints_module
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.manifest import named_leaves


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
        "%2E": np.zeros((), "bool"),
        "half": np.float16([0.1]),
        "eighth": np.ones((2, 2), jax.numpy.float8_e4m3fn),
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


@pytest.mark.parametrize(
    "leaf", [jax.random.key(0), np.array(["text"]), np.array([None]), np.complex128([1j]), np.datetime64("2026-01-01")]
)
def test_a_leaf_that_is_no_plain_array_is_refused_by_name(leaf, tmp_path):
    with pytest.raises(ValueError, match="dropout"):
        CheckpointStore(tmp_path / "checkpoints").save(0, {"dropout": leaf}, {})


@pytest.mark.parametrize("kind", [np.complex64, np.complex128])
def test_complex_numbers_are_refused_by_name(kind, tmp_path):
    with pytest.raises(ValueError, match="eigenvalues has complex"):
        CheckpointStore(tmp_path / "checkpoints").save(0, {"eigenvalues": kind([1j])}, {})


@pytest.mark.runs
def test_the_weights_and_states_of_a_complex_cell_are_real_arrays_to_any_reader(tmp_path):
    cell, store = CELLS["lru"](4), CheckpointStore(tmp_path / "checkpoints")
    carry = cell.initialize_carry(jax.random.key(0), (2, 3))
    params = cell.init(jax.random.key(0), carry, np.zeros((2, 3), np.float32))["params"]
    store.save(0, {"params": params, "carry": carry}, {})
    for name, number in (("model", len(jax.tree.leaves(params))), ("training_state", 2)):
        arrays = load_file(tmp_path / "checkpoints" / "00000000" / f"{name}.safetensors")
        assert [array.dtype for array in arrays.values()] == [np.float32] * number


def test_a_raw_key_comes_back(tmp_path):
    store, key = CheckpointStore(tmp_path / "checkpoints"), jax.random.key(7)
    store.save(0, {"key": jax.random.key_data(key)}, {})
    assert jax.random.wrap_key_data(store.restore()[0]["key"]) == key


def test_other_programs_read_the_parameters_by_name(store):
    params = make_state(2).params["cell"]
    arrays = load_file(store.directory / "00000020" / "model.safetensors")
    assert_bitwise_equal(arrays, {"cell.kernel": np.asarray(params["kernel"]), "cell.bias": np.asarray(params["bias"])})


def test_a_name_that_safetensors_reserves_is_refused(tmp_path):
    with pytest.raises(ValueError, match="__metadata__"):
        CheckpointStore(tmp_path / "checkpoints").save(0, {"__metadata__": np.ones(2)}, {})
    assert os.listdir(tmp_path / "checkpoints") == []


def test_nan_in_the_host_json_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        CheckpointStore(tmp_path / "checkpoints").save(0, make_state(), {"best": math.nan})
    assert os.listdir(tmp_path / "checkpoints") == []


def test_the_latest_and_the_best_are_kept_and_known_after_reopening(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep_latest=2)
    for step, metric in enumerate([3.0, 1.0, math.nan, -math.inf, 2.0, None]):
        store.save(step, {"x": np.float32([step])}, {}, metric)
    reopened = CheckpointStore(tmp_path / "checkpoints")
    assert (reopened.steps(), reopened.best(), reopened.latest()) == ([1, 4, 5], 1, 5)
    assert reopened.restore(1)[0]["x"] == 1


def test_a_store_may_keep_the_latest_alone(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep_latest=1)
    for step in range(3):
        store.save(step, {"x": np.float32([step])}, {})
    assert store.steps() == [2]


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
    monkeypatch.setattr(checkpoints_module, "read_arrays", lambda *_: pytest.fail("arrays were read"))
    with pytest.raises(CheckpointError) as caught:
        store.restore(20, like=abstract(make_state(hidden=5)))
    assert all(said in str(caught.value) for said in ("params.cell.kernel", "(4, 3)", "(5, 3)", "config.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cell: cell | {"peephole": cell["bias"]}, r"params\.cell\.peephole"),
        (lambda cell: {"kernel": cell["kernel"]}, r"params\.cell\.bias"),
        (
            lambda cell: cell | {"bias": cell["bias"].astype("float32")},
            r"params\.cell\.bias .*bfloat16.*float32",
        ),
    ],
)
def test_another_tree_or_dtype_is_named(store, change, message):
    like = make_state()
    like = like._replace(params={"cell": change(like.params["cell"])})
    with pytest.raises(CheckpointError, match=message):
        store.restore(20, like=abstract(like))


def test_another_shape_is_not_taken_for_damage(store):
    with pytest.raises(CheckpointError, match="shape"):
        store.restore_newest_good(like=make_state(hidden=5))


@pytest.mark.parametrize("ask", [CheckpointStore.restore, CheckpointStore.restore_newest_good, CheckpointStore.digest])
def test_no_checkpoint_at_all_says_how_to_make_one(tmp_path, ask):
    with pytest.raises(CheckpointError, match=r"python train\.py"):
        ask(CheckpointStore(tmp_path / "checkpoints"))


def test_a_step_that_is_not_there_names_those_that_are(store):
    with pytest.raises(CheckpointError, match=r"step 15 .*10, 20"):
        store.restore(15)


def test_a_save_that_fails_keeps_the_former_and_leaves_nothing(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(CheckpointError, match=r"checkpoints.*No space left"):
        store.save(30, make_state(3), {})
    monkeypatch.undo()
    assert sorted(os.listdir(store.directory)) == ["00000010", "00000020"]
    assert_bitwise_equal(store.restore(like=make_state())[0], make_state(2))


def test_a_run_folder_that_vanished_is_not_made_again(tmp_path):
    with pytest.raises(CheckpointError, match="checkpoints"):
        CheckpointStore(tmp_path / "gone" / "checkpoints").save(1, make_state(), {})
    assert not (tmp_path / "gone").exists()


def test_reading_changes_nothing_on_the_disk(store):
    (store.directory / temporary_name("00000030")).mkdir()
    before = sorted(p.relative_to(store.directory) for p in store.directory.rglob("*"))
    reader = CheckpointStore(store.directory)
    reader.restore()
    reader.best()
    assert sorted(p.relative_to(store.directory) for p in store.directory.rglob("*")) == before


def test_half_written_and_half_removed_folders_are_ignored_and_removed_by_the_next_save(store, tmp_path):
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "thesis.tex").touch()
    shutil.copytree(store.directory / "00000020", store.directory / temporary_name("00000030"))
    for name in (".tmp-30-1-abc", ".00000030.1-0a1b2c3d-0a1b2c3d.tmp"):
        (store.directory / name).mkdir()
    (store.directory / ".tmp-others").symlink_to(tmp_path / "others")
    (store.directory / "notes").mkdir()
    assert store.steps() == [10, 20]
    store.save(30, make_state(), {})
    assert sorted(os.listdir(store.directory)) == [
        *(".00000030.1-0a1b2c3d-0a1b2c3d.tmp", ".tmp-30-1-abc", ".tmp-others"),
        *("00000010", "00000020", "00000030", "notes"),
    ]
    assert (tmp_path / "others" / "thesis.tex").exists()


def remove(run):
    shutil.rmtree(run)


def move(run):
    run.rename(run.with_name("away"))


@pytest.mark.parametrize("strike", [remove, move])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_a_run_that_goes_while_a_checkpoint_is_written_is_reported_and_not_made_again(
    late, strike, saved, tmp_path, monkeypatch
):
    run, write = tmp_path / "run", checkpoints_module._write_files
    store = CheckpointStore(shutil.copytree(saved, run / "checkpoints"))

    def struck(folder, files):
        if late:
            write(folder, files)
        strike(run)
        if not late:
            write(folder, files)

    monkeypatch.setattr(checkpoints_module, "_write_files", struck)
    with pytest.raises(CheckpointError, match=r"run/checkpoints.*removed or moved"):
        store.save(30, make_state(3), {})
    assert not run.exists()


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_a_folder_that_takes_the_place_of_a_run_while_a_checkpoint_is_written_gets_none(
    late, saved, tmp_path, monkeypatch
):
    run, write = tmp_path / "run", checkpoints_module._write_files
    store = CheckpointStore(shutil.copytree(saved, run / "checkpoints"))

    def struck(folder, files):
        if late:
            write(folder, files)
        move(run)
        (run / "checkpoints").mkdir(parents=True)
        if not late:
            write(folder, files)

    monkeypatch.setattr(checkpoints_module, "_write_files", struck)
    with pytest.raises(CheckpointError, match="removed or moved"):
        store.save(30, make_state(3), {})
    assert os.listdir(run / "checkpoints") == []
    assert CheckpointStore(tmp_path / "away" / "checkpoints").steps() == [10, 20]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EMFILE])
@pytest.mark.parametrize(("call", "good"), [("fsync", 0), ("fsync", 1), ("fsync", 2), ("fsync", 3), ("rename", 0)])
def test_a_save_that_the_system_refuses_at_any_moment_leaves_what_there_was(store, monkeypatch, call, good, number):
    before, calls = sorted(os.listdir(store.directory)), iter(range(100))

    def refuse(*_):
        if next(calls) >= good:
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(CheckpointError, match=os.strerror(number)):
            store.save(30, make_state(3), {})
    assert sorted(os.listdir(store.directory)) == before
    assert_bitwise_equal(store.restore(like=make_state())[0], make_state(2))


def test_a_folder_that_was_removed_while_training_is_not_made_again(store):
    store.save(30, make_state(), {})
    shutil.rmtree(store.directory)
    with pytest.raises(CheckpointError, match="removed or moved"):
        store.save(40, make_state(), {})
    assert not store.directory.exists()


KILLED = """
import os, sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from jaxgen.runs.checkpoints import CheckpointStore
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


@pytest.mark.runs
def test_saving_and_restoring_say_nothing_to_the_user(killed):
    process, _ = killed
    assert (process.returncode, process.stdout, process.stderr) == (137, "", "")


@pytest.mark.runs
def test_a_kill_in_the_middle_of_a_save_leaves_the_former_checkpoint(killed):
    _, folder = killed
    assert len(os.listdir(folder)) == 2  # the half-written one is there
    assert CheckpointStore(folder).steps() == [1]


@pytest.mark.runs
def test_what_two_devices_saved_one_device_restores(killed):
    _, folder = killed
    state, _ = CheckpointStore(folder).restore(like={"x": jax.ShapeDtypeStruct((8,), "float32")})
    np.testing.assert_array_equal(state["x"], np.arange(8.0))
    assert len(state["x"].sharding.device_set) == 1


def test_a_state_without_params_says_so(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(1, {"x": np.float32([1])}, {})
    with pytest.raises(CheckpointError, match="params"):
        store.restore_params()


def test_names_do_not_depend_on_classes_and_equal_ones_are_refused():
    state = {
        "layers": [{1: np.float32([1])}, optax.EmptyState()],
        "a": State({"x": np.float32([1])}, (), np.float32([2])),
    }
    names = [name for name, _ in named_leaves(state)]
    assert names == ["a.params.x", "a.step", "layers.0.1"]
    with pytest.raises(ValueError, match="same name"):
        named_leaves(Twins())


@jax.tree_util.register_pytree_with_keys_class
class Twins:
    """A node whose two children have keys that look the same as text."""

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.DictKey(key), np.float32([1])) for key in (1, "1")], None

    @classmethod
    def tree_unflatten(cls, _, __):
        return cls()


def test_a_store_that_keeps_nothing_and_a_negative_step_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keep_latest"):
        CheckpointStore(tmp_path, keep_latest=0)
    with pytest.raises(ValueError, match="step is -1"):
        CheckpointStore(tmp_path).save(-1, {}, {})
