"""Links, pipes and foreign files in a checkpoint: refused, and nothing outside of it is read or changed."""

import hashlib
import os
from pathlib import Path

import pytest
from kept_states import forge_manifest, largest_file, make_state, tree

from jaxgen.errors import CheckpointError
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.manifest import MANIFEST, DamagedCheckpointError


def test_a_file_that_was_not_saved_is_refused(store):
    (store.directory / "00000020" / "more.safetensors").touch()
    with pytest.raises(DamagedCheckpointError, match=r"more\.safetensors is not"):
        store.restore()


def test_a_folder_that_was_not_saved_is_refused(store):
    (store.directory / "00000020" / "more").mkdir()
    with pytest.raises(DamagedCheckpointError, match="more is not"):
        store.restore()


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
