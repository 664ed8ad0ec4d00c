"""Process settings of the commands: the allocator, the compilation cache, host devices."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
import zlib

import jax
import pytest

import jaxgen
from jaxgen import jitted
from jaxgen import runtime as host
from jaxgen.errors import UsageError
from jaxgen.runtime import keep_compilations, keep_memory
from jaxgen.sampling.decode import PRNG, make_key


@pytest.fixture
def user_cache(tmp_path, monkeypatch):
    """A process without a folder for compiled functions, whose user has an empty cache folder."""
    monkeypatch.setattr(host, "user_cache", lambda: tmp_path / "cache")
    names = ["compilation_cache_dir", "persistent_cache_min_compile_time_secs", "persistent_cache_min_entry_size_bytes"]
    former = {f"jax_{name}": jax.config.values[f"jax_{name}"] for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "cache"
    for name, value in former.items():
        jax.config.update(name, value)


def test_the_allocator_is_left_alone_where_it_should_be(monkeypatch):
    monkeypatch.setenv("JAXGEN_MALLOC", "0")
    assert keep_memory() is False
    monkeypatch.delenv("JAXGEN_MALLOC")
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert keep_memory() is False


def test_compiled_functions_are_kept_in_a_folder_for_this_jaxlib_and_processor(user_cache):
    folder = keep_compilations()
    assert folder.parent == user_cache / "compiled"
    assert folder.name.startswith(jax.lib.__version__)
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_another_processor_has_another_folder(user_cache, monkeypatch):
    here = keep_compilations()
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(host, "processor", lambda: "another")
    assert keep_compilations() not in (here, None)


def test_a_folder_that_was_chosen_for_jax_stays(user_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert keep_compilations() is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


def test_nothing_is_kept_where_the_cache_folder_cannot_be_made(user_cache):
    user_cache.write_text("a file where the folder would be")
    assert keep_compilations() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_the_oldest_compiled_functions_go_when_there_are_too_many_bytes(user_cache, monkeypatch):
    folder = keep_compilations()
    for age in range(4):
        (folder / f"{age}-cache").write_bytes(zlib.compress(b""))
        os.utime(folder / f"{age}-cache", (1000 - age, 1000 - age))
    monkeypatch.setattr(host, "MAX_CACHE_BYTES", 20)
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compilations()
    assert sorted(path.name for path in folder.glob("*-cache")) == ["0-cache", "1-cache"]


def test_what_jax_keeps_beside_the_compiled_functions_is_left_alone(user_cache, monkeypatch):
    folder = keep_compilations()
    (folder / "autotuned").mkdir()
    (folder / "1-cache").write_bytes(zlib.compress(b""))
    monkeypatch.setattr(host, "MAX_CACHE_BYTES", 5)
    jax.config.update("jax_compilation_cache_dir", None)
    assert keep_compilations() == folder
    assert sorted(path.name for path in folder.iterdir()) == [".entries", "autotuned"]


def test_what_was_not_written_to_its_end_is_removed_at_the_next_start(user_cache):
    folder, whole = keep_compilations(), zlib.compress(bytes(range(256)) * 50)
    (folder / "whole-cache").write_bytes(whole)
    (folder / "other-cache").write_bytes(host.ZSTANDARD + b"what only Zstandard can read")
    for length in (0, 3, 20, len(whole) - 1):
        (folder / f"{length}-cache").write_bytes(whole[:length])
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compilations()
    assert sorted(path.name for path in folder.glob("*-cache")) == ["other-cache", "whole-cache"]


def test_flags_in_a_file_that_xla_reads_are_told_by_content(tmp_path, monkeypatch):
    (tmp_path / "flags").write_text("--xla_a\n--xla_dump_to=x\n")
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    assert host.numerics()["XLA_FLAGS"] == "--xla_a"


def test_what_can_change_bits_is_told_and_the_commands_set_what_they_can(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_b=1 --xla_force_host_platform_device_count=4 --xla_a")
    quick = jax.config.values["jax_disable_most_optimizations"]
    common = {"XLA_FLAGS": "--xla_a --xla_b=1", **({"jax_disable_most_optimizations": True} if quick else {})}
    assert host.numerics() == common
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        assert host.numerics() == {**common, "jax_enable_x64": True, "jax_default_matmul_precision": "highest"}
    former = jax.config.values["jax_random_seed_offset"]
    jax.config.update("jax_random_seed_offset", 5)
    jax.config.update("jax_threefry_partitionable", False)
    try:
        assert {**common, "jax_threefry_partitionable": False} == host.numerics()
        keys = jax.random.key_data(make_key(2**32 - 1))
        host.pin_numerics()
        assert host.numerics() == common
    finally:
        host.pin_numerics()
    assert former == jax.config.values["jax_random_seed_offset"] == 0
    assert keys.tolist() == jax.random.key_data(jax.random.key(2**32 - 1, impl=PRNG)).tolist()


def test_an_entry_that_would_fill_the_memory_is_removed_piece_by_piece(user_cache, monkeypatch):
    folder = keep_compilations()
    monkeypatch.setattr(host, "MAX_CACHE_BYTES", 2**26)
    (folder / "sparse-cache").touch()
    os.truncate(folder / "sparse-cache", 2**40)
    (folder / "bomb-cache").write_bytes(zlib.compress(bytes(2**26 + 1)))
    (folder / "large-cache").write_bytes(zlib.compress(bytes(2**25)))
    (folder / "link-cache").symlink_to(folder / "large-cache")
    os.mkfifo(folder / "pipe-cache")  # it is not waited for
    tracemalloc.start()
    try:
        host.clean_cache(folder)
        assert tracemalloc.get_traced_memory()[1] < 10 * host.PIECE
    finally:
        tracemalloc.stop()
    assert [path.name for path in folder.glob("*-cache")] == ["large-cache"]


def test_a_compiled_function_is_looked_at_once(user_cache, monkeypatch):
    folder = keep_compilations()
    (folder / "whole-cache").write_bytes(zlib.compress(bytes(50)))
    host.clean_cache(folder)
    looks = []
    monkeypatch.setattr(host, "_whole", looks.append)
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compilations()
    assert looks == []
    assert (folder / "whole-cache").exists()


@pytest.mark.parametrize("exchange", ["names", "contents"])
def test_compiled_functions_that_were_exchanged_are_removed(tmp_path, exchange):
    first, second, other = (tmp_path / f"{name}-cache" for name in ("first", "second", "other"))
    for path in (first, second, other):
        path.write_bytes(zlib.compress(path.name.encode() * len(path.name)))
    host.clean_cache(tmp_path)
    contents = first.read_bytes(), second.read_bytes()
    if exchange == "names":
        first.rename(tmp_path / "moved")
        second.rename(first)
        (tmp_path / "moved").rename(second)
    else:
        second.write_bytes(contents[0])
        first.write_bytes(contents[1])
    host.clean_cache(tmp_path)
    assert list(tmp_path.glob("*-cache")) == [other]


@pytest.mark.parametrize("index", [b"", b"[1]", b"{", b'{"whole-cache": 1}'])
def test_a_damaged_list_of_the_compiled_functions_stops_nothing(tmp_path, index):
    (tmp_path / ".entries").write_bytes(index)
    (tmp_path / "other-cache").write_bytes(zlib.compress(b""))
    host.clean_cache(tmp_path)
    (tmp_path / "whole-cache").write_bytes(zlib.compress(b""))
    host.clean_cache(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*-cache")) == ["other-cache", "whole-cache"]


def test_a_user_without_a_home_keeps_nothing(user_cache, monkeypatch):
    def homeless():
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr(host, "user_cache", homeless)
    assert keep_compilations() is None


CACHED = """
import sys
from jaxgen.cli.common import prepare_process
if "jax" in sys.modules:
    print("JAX was imported before its process was prepared")
prepare_process()
import jax
print(jax.jit(lambda x: x + 1)(jax.jit(abs)(1)))
"""


@pytest.mark.slow
def test_a_second_start_takes_functions_from_the_cache_and_says_nothing_even_when_one_is_damaged(tmp_path):
    folders = dict.fromkeys(("XDG_CACHE_HOME", "HOME", "LOCALAPPDATA"), str(tmp_path))
    environment = os.environ | folders | {"TF_CPP_MIN_LOG_LEVEL": "1"}  # as JAX sets it for its children
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)

    def start():
        command = [sys.executable, "-c", CACHED]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert (done.stdout, done.stderr, done.returncode) == ("2\n", "", 0)
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*-cache")}

    first = start()
    assert first
    assert start() == first, "a function was compiled again"
    one, another, *_ = tmp_path.rglob("*-cache")
    contents = one.read_bytes(), another.read_bytes()
    one.write_bytes(contents[1])
    another.write_bytes(contents[0])
    start()
    for path in tmp_path.rglob("*-cache"):
        path.write_bytes(path.read_bytes()[:20])
    start()


LATE = """
import jax
from jaxgen.cli.common import prepare_process
prepare_process()
prepare_process()  # as a second `jaxgen.train` does
print(jax.config.values["jax_compilation_cache_dir"])
"""


@pytest.mark.runs
def test_without_a_quiet_start_functions_are_not_kept_because_each_one_loaded_would_print_errors(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", LATE], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("None\n", 0)


@pytest.mark.runs
@pytest.mark.parametrize(
    ("environment", "number"),
    [
        ({}, None),
        pytest.param({"JAX_NUM_CPU_DEVICES": "3"}, 3, marks=pytest.mark.slow),
        pytest.param({"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5, marks=pytest.mark.slow),
    ],
)
def test_each_core_becomes_a_device_unless_the_number_was_set_elsewhere(environment, number):
    code = "from jaxgen.runtime import offer_cores; offer_cores(); import jax; print(jax.local_device_count())"
    clean = {name: value for name, value in os.environ.items() if name not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    environment = {**clean, "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == [str(number or host.cores())], done.stderr


def test_cores_are_offered_too_late_without_an_error():
    there = jax.local_device_count()
    host.offer_cores()
    assert jax.local_device_count() == there


def test_pipes_and_links_are_removed_from_the_cache_and_none_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe-cache")
    (tmp_path / "loop-cache").symlink_to("loop-cache")
    (tmp_path / "folder-cache").mkdir()
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    (tmp_path / "link-cache").symlink_to(outside)
    os.mkfifo(tmp_path / ".entries")
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1), follow_symlinks=False)
    host.clean_cache(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".entries", "folder-cache", "outside"]


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        (lambda: jax.set_mesh(jax.make_mesh((1,), ("x",))), "set_mesh"),
        (lambda: jax.numpy_dtype_promotion("strict"), "numpy_dtype_promotion"),
        (lambda: jax.transfer_guard("disallow"), "transfer_guard"),
        (lambda: jax.transfer_guard_host_to_device("disallow_explicit"), "transfer_guard"),
    ],
)
def test_settings_of_jax_that_cannot_work_are_refused_with_a_sentence(setting, named):
    make = jitted.cached(lambda: len)
    calls = (
        make,
        lambda: jaxgen.start(jaxgen.LanguageConfig()),
        lambda: jaxgen.Sampler.load("no"),
        lambda: jaxgen.resume("no"),
    )
    with setting():
        for call in calls:
            with pytest.raises(UsageError, match=named):
                call()
    assert make() is len


@pytest.mark.runs
@pytest.mark.parametrize("flags", ["--garbage", "garbage", "--xla_force_host_platform_device_count=abc"])
def test_flags_that_xla_does_not_know_are_refused_with_a_sentence(monkeypatch, flags):
    monkeypatch.setenv("XLA_FLAGS", flags)
    with pytest.raises(UsageError, match=f"XLA_FLAGS={flags}"):
        host.check_xla_flags()()
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    host.check_xla_flags()()


def test_the_commands_allow_transfers():
    for name in host.TRANSFER_GUARDS:
        assert name in jax.config.values
    jax.config.update("jax_transfer_guard", "disallow")
    try:
        host.pin_numerics()
        assert jax.config.values["jax_transfer_guard"] == "allow"
    finally:
        jax.config.update("jax_transfer_guard", None)
