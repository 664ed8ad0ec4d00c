"""Reading image files: what each format becomes, and errors."""

import contextlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from jaxgen.errors import DataError
from jaxgen.tasks.caption.images import WIDEST, describe_skipped, find_images, read_image, read_images

SIZE = (8, 6)
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def quarters(size=(6, 8)):
    """Red, green above blue, white; as wide and as high as asked for."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    y, x = size[1] // 2, size[0] // 2
    pixels[:y, :x], pixels[:y, x:], pixels[y:, :x], pixels[y:, x:] = RED, GREEN, BLUE, WHITE
    return Image.fromarray(pixels)


def save(name, image, **options):
    image.save(name, **options)
    return name


def colours(name, **options):
    """The four corners of what is read, in reading order."""
    pixels = read_image(name, SIZE, **options)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    return [tuple(int(v) for v in pixels[y, x]) for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1))]


def refused(name, **options):
    with pytest.raises(DataError) as caught:
        read_image(name, SIZE, **options)
    assert str(caught.value).startswith(f"The image {name} cannot be used: ")
    assert str(caught.value).endswith("Replace it, or leave it out.")
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.ppm", "a.tif", "a.gif"])
def test_an_rgb_image_without_loss_is_read_as_it_is(name):
    save(name, quarters())
    np.testing.assert_array_equal(read_image(name, SIZE), np.asarray(quarters()))


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.jpg", {"quality": 100, "subsampling": 0}), ("a.webp", {"lossless": True}), ("a", {"format": "PNG"})],
)
def test_what_a_file_is_its_content_says(name, options):
    found = np.array(colours(save(name, quarters((64, 64)), **options)), int)
    assert np.abs(found - np.array([RED, GREEN, BLUE, WHITE])).max() <= 3


def test_cmyk_becomes_rgb():
    for name in ("a.jpg", "a.tif"):
        save(name, Image.new("CMYK", (16, 16), (0, 255, 255, 0)))
        assert np.abs(np.array(colours(name), int) - np.array(RED)).max() <= 3


def test_a_palette_becomes_its_colours_and_its_transparent_entries_become_white():
    image = Image.new("P", (6, 8), 0)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.paste(1, (3, 0, 6, 8))
    image.paste(2, (0, 4, 3, 8))
    assert colours(save("a.png", image)) == [RED, GREEN, BLUE, GREEN]
    assert colours(save("a.gif", image, transparency=1)) == [RED, WHITE, BLUE, WHITE]
    half = save("b.png", image, transparency=bytes([255, 0, 102]))
    assert colours(half) == [RED, WHITE, (153, 153, 255), WHITE]


def test_opacity_is_mixed_with_white():
    image = quarters()
    image.putalpha(Image.fromarray(np.repeat(np.array([[255], [0]], np.uint8), [4, 4], 0).repeat(6, 1)))
    assert colours(save("a.png", image)) == [RED, GREEN, WHITE, WHITE]
    assert colours(save("b.png", Image.new("LA", (6, 8), (0, 51)))) == [(204, 204, 204)] * 4
    assert colours(save("c.png", quarters(), transparency=GREEN)) == [RED, WHITE, BLUE, WHITE]


def test_what_is_transparent_does_not_bleed_into_a_reduction():
    pixels = np.zeros((64, 48, 4), np.uint8)
    pixels[::2] = (255, 0, 0, 255)  # lines of red between lines of transparent black
    save("a.png", Image.fromarray(pixels))
    assert np.abs(np.array(colours("a.png"), int) - (255, 127, 127)).max() <= 1  # half red, half white: no black


@pytest.mark.parametrize("mode", ["1", "L"])
def test_greys_become_equal_channels(mode):
    assert colours(save("a.png", Image.new("L", (6, 8), 255).convert(mode))) == [WHITE] * 4


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_keep_their_high_byte_and_are_not_cut_off(name):
    values = np.array([[0, 0x7FFF], [0x8000, 0xFFFF]], np.uint16).repeat(4, 0).repeat(3, 1)
    save(name, Image.fromarray(values))
    assert [pixel[0] for pixel in colours(name)] == [0, 0x7F, 0x80, 0xFF]


def test_a_transparent_grey_of_sixteen_bits_becomes_white():
    values = np.array([[0x1234, 0x1235]], np.uint16).repeat(8, 0).repeat(3, 1)
    assert colours(save("a.png", Image.fromarray(values), transparency=0x1234))[:2] == [WHITE, (0x12, 0x12, 0x12)]


def test_sixteen_bits_of_big_endian_tiff():
    info = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"MM")
    values = np.full((8, 6), 0x4080, ">u2")
    image = Image.frombytes("I;16B", (6, 8), values.tobytes())
    assert colours(save("a.tif", image, tiffinfo=info)) == [(0x40,) * 3] * 4


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize(
    ("orientation", "expected"),
    [  # where the first row and the first column of the file belong, by the EXIF standard 2.3, section 4.6.4
        (1, [RED, GREEN, BLUE, WHITE]),
        (2, [GREEN, RED, WHITE, BLUE]),
        (3, [WHITE, BLUE, GREEN, RED]),
        (4, [BLUE, WHITE, RED, GREEN]),
        (5, [RED, BLUE, GREEN, WHITE]),
        (6, [BLUE, RED, WHITE, GREEN]),
        (7, [WHITE, GREEN, BLUE, RED]),
        (8, [GREEN, WHITE, RED, BLUE]),
    ],
)
def test_the_exif_orientation_is_followed(name, orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"quality": 100, "subsampling": 0} if name == "a.jpg" else {"lossless": True}
    save(name, quarters((40, 64)), exif=exif, **(lossless if name in ("a.jpg", "a.webp") else {}))
    assert np.abs(np.array(colours(name), int) - np.array(expected)).max() <= 3


def test_the_first_frame_of_an_animation_is_read():
    frames = [Image.new("RGB", (6, 8), colour) for colour in (BLUE, RED)]
    for name in ("a.gif", "a.png", "a.tif", "a.webp"):
        options = {"lossless": True} if name == "a.webp" else {}
        save(name, frames[0], save_all=True, append_images=frames[1:], **options)
        assert colours(name) == [BLUE] * 4


@pytest.mark.parametrize("size", [(1, 1), (6, 8), (24, 32), (25, 31), (1000, 7), (3, 900), (311, 417)])
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_picture_of_any_size_becomes_the_size_wanted(size, name):
    save(name, quarters(size))
    found = read_image(name, SIZE)
    assert (found.shape, found.dtype) == ((*SIZE, 3), np.uint8)


def test_a_reduction_averages_all_pixels():
    pixels = np.zeros((640, 480, 3), np.uint8)
    pixels[::2, ::2] = pixels[1::2, 1::2] = 255  # a checkerboard: what takes single pixels makes black or white of it
    save("a.png", Image.fromarray(pixels))
    assert np.abs(read_image("a.png", SIZE).astype(int) - 127).max() <= 1


def test_a_huge_jpeg_is_decoded_at_a_fraction(monkeypatch):
    save("a.jpg", quarters((1600, 1200)))
    loaded = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: loaded.append(self.size) or load(self))
    read_image("a.jpg", SIZE)
    assert (200, 150) in loaded
    assert (1600, 1200) not in loaded


@pytest.mark.parametrize("limit", [100_000, 50_000])  # pillow warns from its limit on and raises from twice that
def test_pillows_warning_of_a_decompression_bomb_is_an_error(monkeypatch, limit):
    save("a.png", Image.new("1", (400, 300)))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert "pixels" in refused("a.png")


def test_rows_longer_than_pillow_decodes_are_no_matter_of_memory():
    def chunk(kind, content):
        checksum = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + checksum

    for width, told in ((WIDEST + 8, f"its rows of {WIDEST + 8:,} pixels are too long"), (20, "cannot be decoded")):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, 16, 6, 0, 0, 0))  # 16 bits of red, green, blue, alpha
        Path("a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"none") + chunk(b"IEND", b""))
        assert told in refused("a.png")


def cut(name, content, keep):
    Path(name).write_bytes(content[: int(len(content) * keep)])


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm"])
def test_a_truncated_file_is_refused(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, kind)
    for keep in (0.6, 0.1):
        cut("a", buffer.getvalue(), keep)
        refused("a")


def test_damage_anywhere_gives_a_picture_or_a_sentence():
    pick = np.random.default_rng(1)
    buffers = []
    for kind in ("png", "jpeg", "gif", "tiff", "webp", "bmp"):
        buffer = io.BytesIO()
        quarters((20, 20)).save(buffer, kind)
        buffers.append(bytearray(buffer.getvalue()))
    for _ in range(20):
        for content in buffers:
            damaged = bytearray(content)
            for place in pick.integers(0, min(len(damaged), 300), 3):
                damaged[place] = pick.integers(0, 256)
            Path("a").write_bytes(damaged)
            with contextlib.suppress(DataError):
                assert read_image("a", SIZE).shape[2] == 3


def test_what_is_no_image_is_refused_with_the_reason():
    Path("empty.png").touch()
    Path("text.jpg").write_text("not a picture")
    Path("folder.png").mkdir()
    Path("program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    assert "empty" in refused("empty.png")
    assert "content" in refused("text.jpg")
    assert "JPEG, " in refused("text.jpg")
    assert "content" in refused("program.eps")  # pillow would start Ghostscript
    assert "not a file" in refused("folder.png")
    assert "No such file" in refused("none.png")
    assert "null byte" in refused("a\0.png")


def test_numbers_of_unknown_white_are_refused():
    save("a.tif", Image.fromarray(np.ones((4, 4), np.float32)))
    assert "floating-point numbers" in refused("a.tif")
    save("b.tif", Image.fromarray(np.full((4, 4), 70_000, np.int32)))
    assert "16 bits" in refused("b.tif")


def test_many_images_are_read_as_each_by_itself():
    pick = np.random.default_rng(0)
    sizes = [(6, 8), (1, 1), (23, 30), (11, 5), (60, 90)]
    originals = [pick.integers(0, 256, (y, x, 3)).astype(np.uint8) for x, y in sizes]
    paths = [save(f"{n}.png", Image.fromarray(pixels)) for n, pixels in enumerate(originals)]
    found = read_images(paths, SIZE)
    assert (found.images.shape, found.images.dtype) == ((len(paths), *SIZE, 3), np.uint8)
    assert (found.kept, found.skipped) == (list(range(len(paths))), [])
    np.testing.assert_array_equal(found.images[0], originals[0])
    for path, image in zip(paths, found.images):
        np.testing.assert_array_equal(read_image(path, SIZE), image)
    for pixels, image in list(zip(originals, found.images))[:4]:
        wanted = jax.image.resize(pixels.astype(np.float32), (*SIZE, 3), "linear")
        assert np.abs(image - np.asarray(wanted)).max() <= 1.01


def test_what_cannot_be_used_is_skipped_and_counted():
    save("a.png", Image.new("RGB", (24, 32), RED))
    Path("b.png").write_text("no")
    save("c.png", Image.new("RGB", (24, 32), BLUE))
    found = read_images(["a.png", "b.png", "none.png", "c.png"], SIZE)
    assert found.kept == [0, 3]
    assert [image[0, 0].tolist() for image in found.images] == [list(RED), list(BLUE)]
    assert [path for path, _ in found.skipped] == ["b.png", "none.png"]
    (note,) = describe_skipped(found.skipped, 4, most=1)
    assert note.startswith("2 of 4 images")
    assert note.endswith("; …)")
    assert describe_skipped([], 4) == []


def test_strict_reading_refuses_what_would_be_skipped():
    save("a.png", quarters())
    Path("b.png").write_text("no")
    with pytest.raises(DataError, match=r"b\.png"):
        read_images(["a.png", "b.png"], SIZE, strict=True)


def test_nothing_to_use_is_an_error():
    Path("b.png").touch()
    with pytest.raises(DataError, match=r"b\.png"):
        read_images(["b.png"], SIZE)


def test_images_are_found_in_folders_by_their_names_in_sorted_order():
    for name in ("b.JPG", "sub/a.png", "a.webp", ".hidden.png", ".git/x.png", "notes.txt", "sub/deep/c.tiff"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert find_images(Path()) == (["a.webp", "b.JPG", "sub/a.png", "sub/deep/c.tiff"], ["notes.txt"])
    with pytest.raises(DataError, match="none"):
        find_images(Path("none"))


@pytest.mark.runs
def test_importing_the_reader_loads_no_pillow():
    code = "import sys, jaxgen.tasks.caption.images; print('PIL' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout == "False\n"
