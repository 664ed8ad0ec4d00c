"""Links, pipes and foreign files in a checkpoint: refused, and nothing outside of it is read or changed."""

import hashlib
import os
import pickle
from pathlib import Path

import pytest
from kept_states import assert_bitwise_equal, forge_manifest, largest_file, make_state, tree

from jaxgen.errors import CheckpointError
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.manifest import MANIFEST, DamagedCheckpointError

HARMLESS = [
    ".DS_Store",
    ".nfs000000000001",
    "Thumbs.db",
    "desktop.ini",
    "._model.safetensors",
    "manifest.json~",
    "é.swp",
]


def test_files_that_others_put_into_a_checkpoint_change_nothing(store):
    for step in (10, 20):
        for name in (*HARMLESS, "more.safetensors"):
            (store.directory / f"{step:08d}" / name).write_bytes(b"theirs")
        (store.directory / f"{step:08d}" / "@eaDir").mkdir()
        (store.directory / f"{step:08d}" / "link").symlink_to("nowhere")
        (store.directory / f"{step:08d}" / "model.pickle").write_bytes(pickle.dumps(print))
    for name in HARMLESS:
        (store.directory / name).touch()
    step, state, _, problems = store.restore_newest_good(make_state())
    assert (step, problems, store.best()) == (20, [], 10)
    assert_bitwise_equal(state, make_state(2))
    store.truncate(20)
    store.save(30, make_state(3), {}, metric=4.0)
    assert [each.name for each in store.directory.iterdir() if "damaged" in each.name] == []
    assert store.steps() == [10, 20, 30]


def link_a_file(folder: Path, elsewhere: Path):
    victim = largest_file(folder)
    victim.rename(elsewhere)
    victim.symlink_to(elsewhere)


def link_the_checkpoint(folder: Path, elsewhere: Path):
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)


def link_the_manifest(folder: Path, elsewhere: Path):
    (folder / MANIFEST).rename(elsewhere)
    (folder / MANIFEST).symlink_to(elsewhere)


def make_a_pipe(folder: Path, elsewhere: Path):
    victim = largest_file(folder)
    victim.unlink()
    os.mkfifo(victim)


def leave_the_folder(folder: Path, elsewhere: Path):
    elsewhere.write_bytes(b"secret")
    digest = hashlib.sha256(b"secret").hexdigest()
    names = {"../../elsewhere", str(elsewhere), "more/../../../elsewhere"}
    entry = {"size": 6, "sha256": digest}
    forge_manifest(folder, lambda manifest: manifest["files"].update(dict.fromkeys(names, entry)))


@pytest.mark.parametrize(
    ("attack", "problem"),
    [
        (link_a_file, r"\.safetensors is a link"),
        (link_the_checkpoint, "00000020 is a link"),
        (link_the_manifest, r"manifest\.json: is a link"),
        (make_a_pipe, "not a regular file"),
        (leave_the_folder, r"manifest\.json"),
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
        with pytest.raises(CheckpointError, match="link is a link"):
            ask()
    assert sorted(os.listdir(tmp_path / "theirs")) == [".tmp-notes", "20261122"]
