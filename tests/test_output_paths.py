"""Paths that a user names for output: links are followed, pipes and devices are written to, the rest is refused."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest

from jaxgen.errors import CheckpointError, UsageError
from jaxgen.fsutil import check_output, replace_file, write_output

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes and links of POSIX")


def a_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(folder)  # the path of a socket is short
        server.bind("s")
    return folder / "s"


def a_dangling_link(folder: Path) -> Path:
    (folder / "link").symlink_to("gone")
    return folder / "link"


def a_loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda folder: folder, "folder"),
        (lambda folder: "new/", "name a file"),
        (lambda folder: "", "name a file"),
        (lambda folder: "no/where", "does not exist"),
        (lambda folder: "a\0b", "null"),
        (lambda folder: "x" * 300, "too long"),
        (a_socket, "socket"),
        (a_dangling_link, "link"),
        (a_loop, "links"),
    ],
    ids=["folder", "slash", "empty", "no-folder", "nul", "long", "socket", "dangling", "loop"],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_created(here, make, word):
    path = make(here)
    before = sorted(os.listdir())
    for ask in (lambda: check_output(path, "--plot"), lambda: write_output(path, b"data", "--plot")):
        with pytest.raises(UsageError, match=f"--plot is .*{word}"):
            ask()
    assert sorted(os.listdir()) == before


def test_a_disk_is_refused(here, monkeypatch):
    (here / "disk").write_bytes(b"all that is on it")
    real = os.stat
    block = os.stat_result((stat.S_IFBLK | 0o660, *real("disk")[1:]))
    monkeypatch.setattr(os, "stat", lambda path, **more: block if path == "disk" else real(path, **more))
    with pytest.raises(UsageError, match="block device"):
        write_output("disk", b"data")
    assert (here / "disk").read_bytes() == b"all that is on it"


def test_a_pipe_is_written_to_and_stays(here):
    os.mkfifo("pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe").read_bytes()), daemon=True)
    reader.start()
    check_output("pipe")  # opens nothing: the reader still waits
    write_output("pipe", b"data" * 50_000)
    reader.join(20)
    assert (read, stat.S_ISFIFO(os.stat("pipe").st_mode), os.listdir()) == ([b"data" * 50_000], True, ["pipe"])


def test_an_anonymous_pipe_is_written_to(here):
    read, write = os.pipe()
    write_output(f"/dev/fd/{write}", b"data")
    os.close(write)
    with open(read, "rb") as file:
        assert file.read() == b"data"


@pytest.mark.parametrize("linked", [False, True])
def test_a_character_device_is_written_to_and_stays(here, linked):
    ours, theirs = os.openpty()
    try:
        device = os.ttyname(theirs)
        if linked:
            os.symlink(device, "link")
        write_output("link" if linked else device, b"data")
        assert os.read(ours, 4) == b"data"
        assert stat.S_ISCHR(os.stat(device).st_mode)
    finally:
        os.close(ours)
        os.close(theirs)
    assert os.listdir() == ["link"] * linked


def test_a_link_is_followed_and_its_file_replaced_with_its_permissions(here):
    (here / "there").mkdir()
    target = here / "there/file"
    target.write_bytes(b"old")
    target.chmod(0o640)
    before = target.stat().st_ino
    (here / "near").symlink_to("there/file")
    (here / "far").symlink_to("near")
    write_output("far", b"new")
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (b"new", 0o640)
    assert target.stat().st_ino != before, "written in place, not replaced"
    assert (os.readlink("far"), os.readlink("near"), os.listdir("there")) == ("near", "there/file", ["file"])


def test_a_new_file_has_the_usual_permissions(here):
    write_output("new", b"data")
    (here / "usual").touch()
    assert Path("new").read_bytes() == b"data"
    assert os.stat("new").st_mode == os.stat("usual").st_mode


def test_a_name_of_the_greatest_length_is_written(here):
    name = "é" * 127
    write_output(name, b"data")
    assert os.listdir() == [name]


def test_nothing_of_jaxgen_replaces_a_device_or_a_pipe(here):
    os.mkfifo("pipe")
    with pytest.raises(CheckpointError, match="regular"):
        replace_file(Path("pipe"), b"data")
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)


@pytest.mark.runs
@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_standard_output_in_a_file_gets_the_data_in_order(here, mode):
    code = "from jaxgen.fsutil import write_output as w; print('a'); w('/dev/stdout', b'b\\n'); print('c')"
    (here / "out").write_bytes(b"before\n")
    with open("out", mode) as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True, env=os.environ)
    assert (here / "out").read_bytes() == b"before\n" * (mode == "ab") + b"a\nb\nc\n"


@pytest.mark.runs
@pytest.mark.parametrize(
    ("command", "flag"), [("sample", "--save-state"), ("predict", "--attention"), ("evaluate", "--plot")]
)
def test_a_command_refuses_its_output_before_it_reads_the_run(here, capsys, command, flag):
    (here / "link.png").symlink_to("gone.png")
    assert import_module(f"jaxgen.cli.{command}").main(["--run", "nowhere", flag, "link.png"]) == 2
    assert flag in capsys.readouterr().err
    assert os.listdir() == ["link.png"]
