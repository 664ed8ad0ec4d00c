"""Named sets from a local server: digest checked, cached, JAXGEN_DATA searched first, errors."""

import hashlib
import http.server
from pathlib import Path

import pytest
from builders import read_texts

from jaxgen.data import datasets as named
from jaxgen.data.datasets import NAMED, NamedFile, NamedSet, fetch
from jaxgen.errors import DataError
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.tasks.language.corpus import read_splits

CONTENT = b"To be, or not to be\n"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        body = CONTENT if self.path != "/wrong" else b"something else"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:7] if self.path == "/cut" else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(serve):
    return serve(Handler)


def entry(server, path="/good"):
    return NamedFile("set/file.txt", server.url(path), DIGEST)


def files_in(folder):
    return sorted(path.name for path in Path(folder).rglob("*") if path.is_file())


def test_a_file_is_downloaded_once_and_silently(server, tmp_path, capfd):
    first = fetch(entry(server), tmp_path)
    assert first.read_bytes() == CONTENT
    assert first == fetch(entry(server), tmp_path) == tmp_path / "set" / "file.txt"
    assert server.asked == ["/good"]
    assert capfd.readouterr() == ("", "")


def test_a_set_is_validated_with_its_own_data_unless_others_are_wanted(tmp_path, monkeypatch):
    sets = {}
    for name, val in (("mine", "mine-val"), ("mine-val", None)):
        (tmp_path / f"{name}.txt").write_bytes(name.encode() * 10)
        file = NamedFile(f"{name}.txt", "", hashlib.sha256(name.encode() * 10).hexdigest())
        sets[name] = NamedSet((file,), "", val=val)
    monkeypatch.setenv("JAXGEN_DATA", str(tmp_path))
    for name in sets:
        monkeypatch.setitem(NAMED, name, sets[name])
    own = read_splits(LanguageConfig(data="mine"))
    assert own.whole() == (["mine" * 10], ["mine-val" * 10])
    assert own.val_sha256 == sets["mine-val"].files[0].sha256
    assert read_splits(LanguageConfig(data="mine", val_fraction=0.25)).whole() == (
        ["mine" * 7 + "mi"],
        ["ne" + "mine" * 2],
    )
    assert read_splits(LanguageConfig(data="mine"), validation=False).whole() == (["mine" * 10], [])
    assert named.text_path("mine-val") == str(tmp_path / "mine-val.txt")
    assert named.text_path("mine-val.txt") == "mine-val.txt"


def test_a_damaged_file_in_the_cache_is_downloaded_again(server, tmp_path):
    fetch(entry(server), tmp_path).write_bytes(b"damaged")
    assert fetch(entry(server), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(("path", "says"), [("/wrong", DIGEST), ("/missing", "404"), ("/cut", "/cut")])
def test_a_bad_download_is_a_data_error_and_leaves_nothing(server, tmp_path, path, says):
    with pytest.raises(DataError, match="JAXGEN_DATA") as error:
        fetch(entry(server, path), tmp_path)
    assert says in str(error.value)
    assert files_in(tmp_path) == []


def test_a_server_that_is_gone_is_a_data_error_that_says_what_was_tried(server, tmp_path):
    file = NamedFile("f.txt", "http://127.0.0.1:9/f.txt", DIGEST)
    with pytest.raises(DataError, match="JAXGEN_DATA"):
        fetch(file, tmp_path)
    assert files_in(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_a_data_error(server, tmp_path):
    (tmp_path / "set").write_text("in the way")
    with pytest.raises(DataError, match="downloaded"):
        fetch(entry(server), tmp_path)


def test_the_folder_in_the_variable_is_searched_first(server, tmp_path, monkeypatch):
    local = tmp_path / "mine" / "set" / "file.txt"
    local.parent.mkdir(parents=True)
    local.write_bytes(CONTENT)
    monkeypatch.setenv("JAXGEN_DATA", str(tmp_path / "mine"))
    assert fetch(entry(server), tmp_path / "cache") == local
    assert server.asked == []


def test_a_file_the_folder_lacks_is_downloaded(server, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGEN_DATA", str(tmp_path))
    assert fetch(entry(server), tmp_path / "cache").read_bytes() == CONTENT


def test_another_file_in_the_folder_is_refused_with_both_digests(server, tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "file.txt").write_bytes(b"other")
    monkeypatch.setenv("JAXGEN_DATA", str(tmp_path))
    with pytest.raises(DataError) as error:
        fetch(entry(server), tmp_path)
    assert DIGEST in str(error.value)
    assert hashlib.sha256(b"other").hexdigest() in str(error.value)


def test_a_variable_that_names_no_folder_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGEN_DATA", str(tmp_path / "none"))
    with pytest.raises(DataError, match="folder"):
        fetch(entry(server), tmp_path)


def test_a_set_is_read_by_its_name_through_the_cache(server, tmp_path, monkeypatch):
    monkeypatch.setattr(named, "user_cache", lambda: tmp_path)
    monkeypatch.setitem(NAMED, "hamlet", NamedSet((entry(server),), "a line", documents="line"))
    source = read_texts(["hamlet"])
    assert source.texts == [CONTENT.decode()]
    assert (source.name, source.sha256, source.default_documents) == ("hamlet", DIGEST, "line")


def test_every_set_has_a_secure_address_and_a_whole_digest():
    for entry in NAMED.values():
        for file in entry.files:
            assert file.url.startswith("https://")
            assert len(bytes.fromhex(file.sha256)) == 32
            assert not Path(file.path).is_absolute()


def test_the_cache_is_the_operating_systems():
    assert named.user_cache().name == "jaxgen"
