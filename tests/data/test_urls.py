"""Data from a URL, from a local server: downloaded once, refused where it is not what was asked for."""

from __future__ import annotations

import gzip
import hashlib
import http.server

import pytest
from builders import language_config, read_texts

from jaxgen.data import datasets
from jaxgen.data.files import NoNotes, find_paths
from jaxgen.data.tables import Column, read_table
from jaxgen.errors import DataError
from jaxgen.trainer.run import resume, start

TEXT = b"To be, or not to be\n" * 30
TABLE = b"text,label\nTo be,yes\nnot to be,no\n"
PAGE = b"\n<!DOCTYPE html><html><body>To be</body></html>"
FILES = {
    "/book.txt": TEXT,
    "/book.txt.gz": gzip.compress(TEXT),
    "/news.csv": TABLE,
    "/latest/news.jsonl?raw=1": b'{"text": "To be"}\n',
    "/page": PAGE,
    "/page.html": PAGE,
    "/empty": b"",
    "/a%20b.txt": TEXT,
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if target := self.server.redirects.get(self.path):
            self.answer(302, Location=target)
        elif self.path == "/unpacked.txt.gz":
            body = gzip.compress(TEXT)
            self.answer(200, body, **{"Content-Encoding": "gzip", "Content-Length": len(body)})
        elif self.path == "/cut":
            self.answer(200, TEXT, **{"Content-Length": len(TEXT) + 1})
        elif self.path == "/large":
            self.answer(200, b"a", **{"Content-Length": 10**15})
        elif self.path == "/endless":
            self.answer(200)
            while True:
                self.wfile.write(b"a" * 10_000)
        elif self.path == "/slow":
            self.answer(200, **{"Content-Length": 1})
            self.server.ended.wait()
        elif (body := self.server.files.get(self.path)) is None:
            self.send_error(404)
        else:
            self.answer(200, body, **{"Content-Length": len(body)})

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Told(NoNotes):
    """Keeps the notes."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def server(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "user_cache", lambda: tmp_path / "cache")
    server = serve(Handler)
    server.files = dict(FILES)
    server.redirects = {
        "/moved": "/book.txt",
        "/loop": "/loop",
        "/ftp": "ftp://127.0.0.1/book.txt",
        "/file": "file:///etc/passwd",
        "/nowhere": "http://",
    }
    return server


def kept(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_text_is_downloaded_once_and_named_by_its_url(server, tmp_path):
    url, told = server.url("/book.txt"), Told()
    for _ in range(2):
        source = read_texts([url], watch=told)
        assert source.texts == [TEXT.decode()]
        assert (source.name, source.sha256) == (url, hashlib.sha256(TEXT).hexdigest())
    assert server.asked == ["/book.txt"]
    (file,) = kept(tmp_path)
    (note,) = told.notes
    assert file.name.endswith("-book.txt")
    assert str(file) in note, "the only way to download it again is to remove it"


@pytest.mark.parametrize("path", ["/book.txt.gz", "/unpacked.txt.gz", "/moved", "/a%20b.txt"])
def test_it_may_be_packed_and_elsewhere(server, path):
    assert read_texts([server.url(path)], watch=NoNotes()).texts == [TEXT.decode()]


def test_the_same_url_for_training_and_validation_is_one_file(server):
    told = Told()
    assert len(read_texts([server.url("/book.txt")] * 2, watch=told).texts) == 1
    assert "given before" in told.notes[-1]


def test_a_table_is_known_by_the_end_of_the_path(server):
    columns = Column(("text",), ""), Column(("label",), "")
    table = read_table([server.url("/news.csv")], columns, watch=NoNotes())
    assert table.columns == (["To be", "not to be"], ["yes", "no"])
    rows = read_texts([server.url("/latest/news.jsonl?raw=1")], text_column="text", watch=NoNotes())
    assert list(rows.texts) == ["To be"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/missing", "404"),
        ("/cut", "broke off"),
        ("/large", "larger"),
        ("/endless", "larger"),
        ("/slow", "did not answer"),
        ("/empty", "empty"),
        ("/page", "HTML"),
        ("/loop", "redirects"),
        ("/ftp", "redirects"),
        ("/file", "redirects"),
        ("/nowhere", "address"),
    ],
)
def test_what_cannot_be_used_is_a_sentence_and_leaves_nothing(server, tmp_path, monkeypatch, path, says):
    monkeypatch.setattr(datasets, "_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(datasets, "MAX_BYTES", 100_000)
    url = server.url(path)
    with pytest.raises(DataError, match=says) as error:
        find_paths(url)
    assert url in str(error.value)
    assert kept(tmp_path) == []


def test_encryption_is_not_lost_on_the_way(server, tmp_path, monkeypatch):
    import requests

    def get(url, **options):
        response = sent(url.replace("https:", "http:"), **options)
        response.history[0].url = url
        return response

    sent = requests.get
    monkeypatch.setattr(requests, "get", get)
    with pytest.raises(DataError, match="encryption"):
        find_paths(server.url("/moved").replace("http:", "https:"))
    assert kept(tmp_path) == []


def test_a_page_that_is_asked_for_by_its_name_is_read_with_a_note(server):
    told = Told()
    read_texts([server.url("/page.html")], watch=told)
    assert "HTML" in told.notes[0]


def test_a_server_that_cannot_be_reached_is_a_sentence(server):
    with pytest.raises(DataError, match="cannot be reached") as error:
        find_paths("http://127.0.0.1:9/book.txt")
    assert "Max retries" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/a.txt",
        "file:///etc/passwd",
        "s3://bucket/a.txt",
        "https://",
        "https:///a.txt",
        "http://[::1",
        "https://example.org/a b.txt",
        "https://example.org/a\nb.txt",
        "https://example.org/\udc80",
        "https://me:secret@example.org/a.txt",
    ],
)
def test_addresses_of_another_kind_are_refused_before_anything_is_asked(url):
    with pytest.raises(DataError) as error:
        find_paths(url)
    assert "secret" not in str(error.value)


@pytest.mark.runs
def test_a_run_goes_on_with_what_was_downloaded_and_notices_other_content(server, tmp_path):
    url, run = server.url("/book.txt"), str(tmp_path / "run")
    start(language_config(url, run, steps=1, level="char"))
    server.files["/book.txt"] = TEXT.replace(b"not", b"now")
    resume(run)
    assert server.asked == ["/book.txt"]
    for file in kept(tmp_path):
        file.unlink()
    with pytest.raises(DataError, match="changed"):
        resume(run)
    resume(run, data_changed="accept")
    del server.files["/book.txt"]
    for file in kept(tmp_path):
        file.unlink()
    with pytest.raises(DataError, match="404") as error:
        resume(run)
    assert "looked up" not in str(error.value)


def test_many_comments_before_a_page_are_read_at_once():
    assert datasets._PAGE.match(b"<!--a-->\n" * 100 + b"<html>")
    assert not datasets._PAGE.match(b"<!--a-->\n" * 100 + b"text")


@pytest.mark.parametrize("query", ["token=abc", "X-Amz-Signature=1&a=2", "a=1&api_key=2", "sig=1", "password=p"])
def test_an_address_with_a_secret_is_refused_without_it(query):
    with pytest.raises(DataError) as refused:
        find_paths(f"https://example.org/book.txt?{query}", watch=NoNotes())
    assert "secret" in str(refused.value)
    assert query not in str(refused.value)
