"""Pictures as files and in terminals."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgert import limits
from edgert.errors import EdgertError, RequestError
from edgert.image import pictures, terminal

SETTINGS = {
    "prompt": "a red apple\nleft of \x1b[31m a cat ☂", "negative_prompt": "blur", "seed": 7,
    "steps": 20, "cfg_scale": 4.5, "width": 12, "height": 8, "sampler": "flow-euler",
}  # fmt: skip


@pytest.fixture
def rows() -> Any:
    return np.random.default_rng(1).uniform(-1.2, 1.2, (8 * 12, 3)).astype(np.float32)


def test_rows_become_a_picture_and_come_back(rows: Any) -> None:
    image = pictures.to_image(rows, 8, 12)
    assert image.size == (12, 8)
    back = pictures.to_rows(image)
    assert np.abs(back - np.clip(rows, -1, 1)).max() <= 0.5 / 127.5 + 1e-6
    assert np.array_equal(pictures.to_rows(pictures.to_image(back, 8, 12)), back)


def test_settings_travel_in_the_file(rows: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    pictures.save(pictures.to_image(rows, 8, 12), path, SETTINGS)
    assert pictures.read_settings(path) == SETTINGS
    with Image.open(path) as image:
        line = image.text["parameters"]  # type: ignore[attr-defined]
    assert line.startswith("a red apple")
    assert "Negative prompt: blur" in line
    assert "Steps: 20" in line
    assert "Size: 12x8" in line
    assert "Seed: 7" in line


def test_a_png_of_others_has_no_settings(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "other.png")
    assert pictures.read_settings(tmp_path / "other.png") is None


def test_other_names_than_png_are_refused(rows: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"ends in \.png"):
        pictures.save(pictures.to_image(rows, 8, 12), tmp_path / "out.jpg", {})
    assert not list(tmp_path.iterdir())


def _png(width: int, height: int, *, text: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", head)]
    if text:
        parts.append(chunk(b"zTXt", b"edgert\0\0" + zlib.compress(text, 9)))
    parts += [chunk(b"IDAT", zlib.compress(b"\0" * 64)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


HOSTILE = {
    "no picture": b"GIF, I promise",
    "empty": b"",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "gigantic": _png(50_000, 50_000),
    "large": _png(8_000, 8_000),
    "truncated": _png(300, 300),
    "text that unpacks to 100 MB": _png(2, 2, text=b"A" * 100_000_000),
    "settings that are no JSON": _png(4, 4, text=b"{"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_errors_of_ours(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.png"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(EdgertError, match=r"evil\.png"):
        pictures.read_settings(path)
    if "settings" not in kind:
        with pytest.raises(RequestError, match=r"evil\.png"):
            pictures.load_picture(path, 8, 8)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path, tmp_path / "none.png", tmp_path / "pipe.png"):
        with pytest.raises(RequestError, match="expected a picture"):
            pictures.load_picture(path, 8, 8)


def test_a_file_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "IMAGE_BYTES", 100)
    (tmp_path / "big.png").write_bytes(_png(4, 4) + bytes(100))
    with pytest.raises(RequestError, match="limit of a picture"):
        pictures.load_picture(tmp_path / "big.png", 8, 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_all_kinds_of_pixels_are_read(mode: str, tmp_path: Path) -> None:
    Image.new(mode, (5, 9)).save(tmp_path / "in.png")
    found = pictures.load_picture(tmp_path / "in.png", 8, 6)
    assert (found.mode, found.size) == ("RGB", (8, 6))


def test_cmyk_rotation_and_transparency(tmp_path: Path) -> None:
    Image.new("CMYK", (5, 9)).save(tmp_path / "print.jpg")
    assert pictures.load_picture(tmp_path / "print.jpg", 4, 4).mode == "RGB"
    half = Image.new("RGB", (40, 20), "red")
    half.paste("blue", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    half.save(tmp_path / "turned.png", exif=exif)
    found = pictures.load_picture(tmp_path / "turned.png", 10, 20)
    assert found.getpixel((5, 2)) == (0, 0, 255)
    assert found.getpixel((5, 17)) == (255, 0, 0)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert pictures.load_picture(tmp_path / "clear.png", 4, 4).getpixel((1, 1)) == (255, 255, 255)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "way"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "dumb"}, ""),
        ({"TERM": "screen-256color", "COLORTERM": "truecolor"}, ""),
        ({"TMUX": "/tmp/x", "TERM": "xterm-kitty"}, ""),
    ],
)
def test_terminals_that_can_show_pictures(environ: dict[str, str], way: str) -> None:
    assert terminal.way_of(_Terminal(), environ) == way
    assert terminal.way_of(io.StringIO(), environ) == ""


@pytest.mark.parametrize("way", ["kitty", "iterm", "blocks"])
def test_what_is_shown_ends_as_it_should(way: str, rows: Any) -> None:
    text = terminal.text_of(pictures.to_image(rows, 8, 12), way)
    assert text.startswith("\x1b")
    assert text.endswith("\n")
    if way == "blocks":
        assert text.count("▀") == 12 * 4
        assert all(line.endswith("\x1b[0m") for line in text.splitlines())
