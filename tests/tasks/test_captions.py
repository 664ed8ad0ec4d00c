"""Captions files: what each format gives, how captions are matched to images, errors."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxgen.errors import DataError, UsageError
from jaxgen.tasks.caption import annotations
from jaxgen.tasks.caption.annotations import find_captions, match_captions
from jaxgen.tasks.caption.images import read_features

TOKENS = "b.jpg#0\tA dog .\nb.jpg#1\tTwo  dogs, \tat play\na.jpg#0\tA cat\n"
TABLE = 'image,caption\nb.jpg,A dog .\nb.jpg,"Two  dogs, \tat play"\na.jpg,A cat\n'
COCO = {
    "info": {"year": 2014},
    "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg", "height": 480}],
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "A dog ."},
        {"image_id": 3, "id": 2, "caption": "A cat\n"},
        {"image_id": 7, "id": 3, "caption": "Two  dogs, \tat play"},
    ],
}
WANTED = {"b.jpg": ["A dog .", "Two dogs, at play"], "a.jpg": ["A cat"]}


KARPATHY = {
    "dataset": "flickr8k",
    "images": [
        {"filename": "b.jpg", "split": "train", "sentences": [{"raw": "A dog ."}, {"raw": "Two  dogs, \tat play"}]},
        {"filename": "a.jpg", "split": "val", "imgid": 1, "sentences": [{"raw": "A cat\n", "tokens": ["a", "cat"]}]},
    ],
}
ROWS = [("b.jpg", "A dog ."), ("b.jpg", "Two  dogs, at play"), ("a.jpg", "A cat")]


def lines(image: str, caption: str) -> str:
    return "".join(json.dumps({image: name, caption: text}) + "\n" for name, text in ROWS)


def separated(separator: str, header: str = "image_name{}comment_number{}comment") -> str:
    rows = "".join(f"{name}{separator} 0{separator} {text}\n" for name, text in ROWS)
    return f"{header.format(*[separator + ' '] * 2)}\n{rows}"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, content):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(read, *arguments, **options):
    with pytest.raises(DataError) as caught:
        read(*arguments, **options)
    return str(caught.value)


def read_captions(path, **options):
    return annotations.read_captions(path, **options).captions


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.token.txt", TOKENS),
        ("c", TOKENS.replace("\n", "\r\n") + "\r\n"),
        ("c.csv", TABLE),
        ("captions.txt", "\ufeff" + TABLE.replace("\n", "\r\n")),
        ("c.tsv", "image\tid\tcaption\nb.jpg\t1\tA dog .\nb.jpg\t2\tTwo  dogs, at play\n\na.jpg\t3\tA cat\n"),
        ("c.txt", "caption\timage\nA dog .\tb.jpg\nTwo dogs, at play\tb.jpg\nA cat\ta.jpg"),
        ("c.json", COCO),
        ("c.txt", COCO),
        ("metadata.jsonl", lines("file_name", "text")),
        ("c.txt", lines("image", "caption") + "\n"),
        ("c.json", lines("filename", "captions")),
        ("results.csv", separated("|")),
        ("results.txt", separated("|")),
        ("c.csv", "file_name;text\nb.jpg;A dog .\nb.jpg;Two  dogs, at play\na.jpg;A cat\n"),
        ("c.csv", '\ufeffsep=;\r\nimage;caption\r\nb.jpg;A dog .\r\nb.jpg;"Two  dogs, at play"\r\na.jpg;A cat\r\n'),
        ("dataset.json", KARPATHY),
    ],
)
def test_every_format_gives_the_same_captions_in_the_same_order(name, content):
    found = read_captions(write(name, content))
    assert found == WANTED
    assert list(found) == list(WANTED)


def test_the_columns_of_a_table_may_have_other_names():
    path = write("c.csv", "photo,words,image\nx.png,one,1\n")
    assert read_captions(path, image_column="photo", caption_column="words") == {"x.png": ["one"]}
    message = refused(read_captions, path)
    assert "'caption'" in message


def test_the_columns_of_a_table_may_be_given_by_position_where_every_row_is_data():
    path = write("photos.csv", "1,one,x.png\n2,two,y.png\n")
    assert read_captions(path, image_column="3", caption_column="2") == {"x.png": ["one"], "y.png": ["two"]}
    Path("empty").mkdir()
    assert find_captions("empty", image_column="3", caption_column="2").name == path.name
    assert "--image-column" in refused(read_captions, path, image_column="4", caption_column="2")
    assert "--image-column" in refused(read_captions, path)
    for columns in ({"image_column": "3"}, {"image_column": "0", "caption_column": "1"}):
        with pytest.raises(UsageError, match="from 1"):
            read_captions(path, **columns)


@pytest.mark.parametrize("column", ["--5", "+-5", "9" * 5_000])
def test_what_only_resembles_a_position_of_a_column_is_its_name(column):
    path = write("photos.csv", "x.png,one\n")
    said = refused(read_captions, path, image_column="image", caption_column=column)
    assert "photos.csv" in said
    with pytest.raises(DataError, match="no captions"):
        find_captions(".", image_column="image", caption_column=column)


def test_text_keeps_what_only_looks_like_markup():
    line = 'x.jpg#0\tsays "hi", café \u2028 naïve #1'
    assert read_captions(write("c.txt", line)) == {"x.jpg": ['says "hi", café naïve #1']}
    assert read_captions(write("c.tsv", 'image\tcaption\nx.jpg\t"so" it said\n')) == {"x.jpg": ['"so" it said']}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("c.txt", "a.jpg#0\tA cat\nnonsense\n", "Line 2 of c.txt"),
        ("c.txt", "a.jpg#0 A cat\na.jpg#1\tA dog\n", "Line 1 of c.txt"),
        ("c.txt", "a.jpg#0\tA cat\n\na.jpg#1\t  \n", "Line 3 of c.txt"),
        (
            "c.csv",
            "image,caption\na.jpg,A\nb.jpg,A cat, a dog\n",
            "Line 3 of c.csv has 3 columns, but the first row has 2",
        ),
        ("c.csv", 'image,caption\na.jpg,"\n\n"\n', "Line 2 of c.csv"),
        ("c.csv", 'image,caption\na.jpg,"A\n', "Line 2 of c.csv"),
        ("c.csv", "image,caption\n", "no captions"),
        ("c.txt", "", "no captions"),
        ("c.txt", "A cat\nA dog\n", "format"),
        ("c.txt", b"a.jpg#0\tA cat\na.jpg#1\tcaf\xe9\n", "0xe9"),
        ("c.txt", "A cat".encode("utf-16"), "UTF-16"),
        ("c.json", "{", "JSON"),
        ("c.json", "[" * 100_000, "JSON"),
        ("c.json", [], "object"),
        ("c.json", {"images": [], "annotations": {}}, "annotations: "),
        (
            "c.json",
            COCO | {"images": [{"id": True}]},
            "images.0.id",
        ),
        ("c.json", COCO | {"images": COCO["images"] * 2}, "same id"),
        (
            "c.json",
            COCO | {"images": COCO["images"][:1]},
            "Annotation 1",
        ),
        (
            "c.json",
            COCO | {"images": [{"id": 7}, {"id": 3}]},
            "images.0.file_name",
        ),
        (
            "c.json",
            COCO | {"annotations": [{"image_id": 7}]},
            "annotations.0.caption",
        ),
        ("c.json", COCO | {"annotations": [None]}, "annotations.0: "),
        ("c.json", COCO | {"annotations": []}, "no captions"),
        ("c.jsonl", '{"file_name": "a.jpg", "text": "A"}\n{"file_name": "b.jpg"}\n', "line 2 of c.jsonl"),
        ("c.jsonl", '{"file_name": "a.jpg", "text": "A"}\n{"file_name"\n', "Line 2 of c.jsonl"),
        ("c.csv", "image_name| comment_number| comment\na.jpg| 0| A\nb.jpg| 4 B\n", "Line 3 of c.csv: the caption"),
        ("c.json", {"images": [KARPATHY["images"][0] | {"split": "dev"}]}, "images.0.split"),
        ("c.json", {"images": [KARPATHY["images"][0] | {"sentences": [{"raw": " "}]}]}, "Image 0 of c.json"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(name, content, sentence):
    assert sentence in refused(read_captions, write(name, content))


def test_a_file_that_cannot_be_read_is_named():
    Path("folder.json").mkdir()
    assert "none.txt" in refused(read_captions, "none.txt")
    assert "folder.json" in refused(read_captions, "folder.json")


def test_empty_captions_are_skipped_on_request():
    path = write("c.txt", "a.jpg#0\t\na.jpg#1\tA cat\nb.jpg#0\t \n")
    assert read_captions(path, empty="skip") == {"a.jpg": ["A cat"]}


@pytest.mark.parametrize("place", ["photos/captions", "captions"])
@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".token", TOKENS),
        (".csv", TABLE),
        (".txt", TABLE),
        (".json", COCO),
        (".JSON", COCO),
        (".json", KARPATHY),
        (".jsonl", lines("file_name", "text")),
        (".csv", separated("|")),
    ],
)
def test_the_captions_of_a_folder_are_found_inside_it_and_beside_it(place, ending, content):
    write("photos/a.jpg", "")
    write("photos/notes.txt", "Taken in spring, with a, b")
    write("photos/other.csv", "image,label\na.jpg,cat\n")
    write("photos/empty.json", "")
    write("instances.json", {"images": [], "annotations": [{"image_id": 1, "bbox": []}]})
    path = write(place + ending, content)
    assert find_captions("photos").resolve() == path.resolve()


def test_captions_inside_go_before_captions_beside():
    write("captions.csv", TABLE)
    inside = write("photos/captions.csv", TABLE)
    assert find_captions("photos") == inside


def test_none_and_several_captions_files_are_refused():
    Path("photos").mkdir()
    message = refused(find_captions, "photos")
    assert "no captions" in message
    assert "COCO" in message
    write("photos/a.token.txt", TOKENS)
    write("photos/b.token.txt", TOKENS)
    assert "'a.token.txt', 'b.token.txt'" in refused(find_captions, "photos")
    assert "folder none" in refused(find_captions, "none")


def test_captions_find_their_images_by_name_or_last_part():
    names = ["x/a.jpg", "x/b.jpg", "y/b.jpg", "c.jpg"]
    captions = {"c.jpg": ["C"], "a.jpg": ["A", "Aa"], "y/b.jpg": ["B"], "x/b.jpg": ["X"]}
    found = match_captions(captions, names, where="photos")
    assert found.names == ["c.jpg", "x/a.jpg", "y/b.jpg", "x/b.jpg"]
    assert found.captions == [["C"], ["A", "Aa"], ["B"], ["X"]]
    assert (found.images_left_out, found.captions_left_out) == ([], [])


def test_an_ambiguous_last_part_finds_no_image():
    found = match_captions({"b.jpg": ["?"], "c.jpg": ["C"]}, ["x/b.jpg", "y/b.jpg", "c.jpg"], where="p", missing="skip")
    assert found[:4] == (["c.jpg"], [["C"]], ["x/b.jpg", "y/b.jpg"], ["b.jpg"])


def test_images_and_captions_without_each_other_are_refused_or_skipped():
    captions = {name: [name] for name in ("a", "b", "c", "d", "e")}
    message = refused(match_captions, captions, ["a"], where="photos")
    assert "4 of 5" in message
    message = refused(match_captions, {"a": ["A"]}, ["a", "z"], where="photos")
    assert "1 of 2" in message
    found = match_captions(captions, ["z", "c", "a"], where="photos", missing="skip")
    assert found[:4] == (["a", "c"], [["a"], ["c"]], ["z"], ["b", "d", "e"])


MATCHES = {
    "the folder given is a child": (["images/train/a.jpg"], ["a.jpg"], {0: 0}),
    "the folder given is a parent": (["a.jpg", "y/b.jpg"], ["x/a.jpg", "x/y/b.jpg"], {0: 0, 1: 1}),
    "backslashes": (["C:\\photos\\x\\a.jpg", ".\\x\\b.jpg"], ["x/a.jpg", "x/b.jpg"], {0: 0, 1: 1}),
    "case": (["a.JPG", "X/B.jpg"], ["a.jpg", "x/b.jpg"], {0: 0, 1: 1}),
    "forms": (["e\u0301.jpg"], ["\xe9.jpg"], {0: 0}),
    "case that tells images apart": (["a.jpg", "A.jpg"], ["A.jpg", "a.jpg"], {0: 1, 1: 0}),
    "case that is ambiguous": (["a.JPG", "c"], ["A.jpg", "a.jpg", "c"], {1: 2}),
    "two captioned images for one": (["a.JPG", "A.jpg", "c"], ["a.jpg", "c"], {2: 1}),
    "other folders": (["dogs/1.jpg", "c"], ["cats/1.jpg", "c"], {1: 1}),
    "several folders for one": (["cats/1.jpg", "dogs/1.jpg", "c"], ["1.jpg", "c"], {2: 1}),
    "the folder's own name": (["cats/1.jpg", "photos/1.jpg"], ["1.jpg"], {1: 0}),
    "the whole path": (["{here}/photos/1.jpg", "cats/1.jpg"], ["1.jpg"], {0: 0}),
    "an exact name before the last part": (["a.jpg"], ["x/a.jpg", "a.jpg"], {0: 1}),
}


@pytest.mark.parametrize(("images", "names", "matches"), MATCHES.values(), ids=MATCHES)
def test_paths_match_by_their_last_parts_where_that_is_unambiguous(images, names, matches):
    images = [image.replace("{here}", str(Path.cwd())) for image in images]
    found = match_captions({image: [image] for image in images}, names, where="photos", missing="skip")
    assert dict(zip(found.known_as, found.names)) == {images[i]: names[n] for i, n in matches.items()}
    assert set(found.captions_left_out) == {image for i, image in enumerate(images) if i not in matches}


def test_images_in_a_format_that_is_not_read_are_named_as_such():
    captions, others = {"a.jpg": ["A"], "j.HEIC": ["J"]}, ["x/j.heic", "captions.csv"]
    said = refused(match_captions, captions, ["a.jpg"], where="photos", others=others)
    assert "format that is not read: 'j.HEIC'" in said
    for names in (["a.jpg"], []):
        assert "not read" in refused(match_captions, {"j.heic": ["J"]}, names, where="photos", others=others)
    found = match_captions(captions, ["a.jpg"], where="photos", others=others, missing="skip")
    assert (found.names, found.unread, found.captions_left_out) == (["a.jpg"], ["j.HEIC"], [])


def test_the_captions_may_be_in_a_file_for_each_image():
    for name, content in {
        "x/b.txt": "A dog .\n\nTwo  dogs, at play\n",
        "a.TXT": "\ufeffA cat",
        "notes.txt": "?",
    }.items():
        write(f"photos/{name}", content)
    names = ["x/b.jpg", "a.jpg", "c.jpg"]
    assert find_captions("photos", names=names) == Path("photos")
    found = annotations.read_captions("photos", names=names)
    assert found.captions == {"x/b.jpg": WANTED["b.jpg"], "a.jpg": ["A cat"]}
    assert [str(file) for file in found.files] == ["photos/x/b.txt", "photos/a.TXT"]
    write("photos/c.txt", "\n")
    assert "c.txt" in refused(read_captions, "photos", names=names)
    assert list(read_captions("photos", names=names, empty="skip")) == names[:2]
    beside = write("captions.csv", TABLE)
    assert find_captions("photos", names=names).resolve() == beside.resolve()  # written as captions


@pytest.mark.parametrize("missing", ["refuse", "skip"])
def test_nothing_in_common_is_an_error(missing):
    message = refused(match_captions, {"a": ["A"]}, ["z"], where="photos", missing=missing)
    assert "'z'" in message
    assert "no images" in refused(match_captions, {"a": ["A"]}, [], where="photos")


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32"])
def test_features_are_read_as_float32(shape, dtype):
    features = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    np.savez("f.npz", features=features, names=["a", "b", "ü"], more=np.zeros(2))
    found = read_features("f.npz")
    assert found.names == ["a", "b", "ü"]
    assert found.features.dtype == np.float32
    np.testing.assert_array_equal(found.features, features)


def test_features_may_be_compressed_by_columns_and_named_in_bytes():
    features = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.savez_compressed("f.npz", features=features, names=np.array(["ü".encode(), b"b"]))
    found = read_features("f.npz")
    assert found.names == ["ü", "b"]
    np.testing.assert_array_equal(found.features, features)


NAMES = np.array(["a", "b"])
GOOD = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"features": GOOD}, "names is not a file"),
        ({"names": NAMES, "x": GOOD}, "features is not a file"),
        ({"features": GOOD, "names": np.array(["a", 1], object)}, "Object arrays"),
        ({"features": GOOD.astype(object), "names": NAMES}, "Object arrays"),
        ({"features": GOOD.astype(complex), "names": NAMES}, "complex128"),
        ({"features": GOOD, "names": NAMES[:1]}, "(2, 3)"),
        ({"features": GOOD[0], "names": NAMES}, "(3,)"),
        ({"features": GOOD[:, :0], "names": NAMES}, "(2, 0)"),
        ({"features": GOOD * [[1], [np.inf]], "names": NAMES}, "finite"),
        ({"features": GOOD.astype(float) * 1e39, "names": NAMES}, "'a'"),
        ({"features": GOOD, "names": NAMES[[1, 1]]}, "'b'"),
        ({"features": GOOD, "names": np.array(["a", ""])}, "''"),
        ({"features": GOOD, "names": np.array([b"a", b"\xff"])}, "utf-8"),
    ],
)
def test_features_that_cannot_be_used_are_refused(arrays, sentence):
    np.savez("f.npz", **arrays)
    assert sentence in refused(read_features, "f.npz")


def test_features_larger_than_memory_by_their_header_are_refused():
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2, 10**14)})
    names = io.BytesIO()
    np.save(names, NAMES)
    with zipfile.ZipFile("f.npz", "w") as archive:
        archive.writestr("features.npy", header.getvalue() + b"1234")
        archive.writestr("names.npy", names.getvalue())
    assert "800000000000000 bytes" in refused(read_features, "f.npz")


@pytest.mark.parametrize(
    "header",
    [
        b"(" * 9_000,
        b"-" * 9_000 + b"1",
        b"1+" * 3_000 + b"1",
        b"{'descr': (), 'fortran_order': False, 'shape': (1,)}",
        b"{1: 2, 'a': 3}",
    ],
    ids=["brackets left open", "thousands of signs", "thousands of sums", "no type", "keys of two kinds"],
)
def test_features_with_a_header_that_is_none_are_refused_whatever_its_reader_raises(header):
    with zipfile.ZipFile("f.npz", "w") as archive:
        archive.writestr("features.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        archive.writestr("names.npy", b"")
    assert "f.npz" in refused(read_features, "f.npz")


def test_what_is_no_npz_file_is_refused():
    np.savez("f.npz", features=GOOD, names=NAMES)
    content = Path("f.npz").read_bytes()
    for damaged in (b"", b"text", content[:200], content[:100] + b"xxxx" + content[104:]):
        Path("d.npz").write_bytes(damaged)
        assert "d.npz" in refused(read_features, "d.npz")
    np.save("a.npz.npy", GOOD)
    assert "numpy.savez" in refused(read_features, "a.npz.npy")
    assert "none.npz" in refused(read_features, "none.npz")
