"""Conversions with calibration on hostile texts, weights and machines: rows H17 and H21."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from edgert.converters.calibrate import Calibration, inputs_of
from edgert.converters.calibration_memory import Work, needed
from edgert.converters.compress.whiten import Gram, Inputs
from edgert.converters.layers import Layers
from edgert.converters.quantize.gptq import gptq, gptq_bytes
from edgert.converters.segments import segments

import edgert.notices
from benchmarks.make_checkpoint import make_checkpoint
from edgert import limits, system_memory
from edgert.bundle import Bundle
from edgert.errors import ConvertError, EdgertError, ResourceError
from tests.converters.faults import convert_tiny
from tests.tiny import tiny_graph

from .test_conversion import Specs, edit

TEXT = " ".join(f"{i} times {j} is {i * j}." for i in range(20) for j in range(20))
CALIBRATION = Calibration(TEXT, sequences=4, length=64)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return make_checkpoint("tiny", tmp_path / "tiny", dtype="f32")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "m.edge"


def calibrated(
    checkpoint: Path, out: Path, calibration: Calibration = CALIBRATION, **options: Any
) -> Any:
    return convert_tiny(checkpoint, out, calibration=calibration, quant="int4", **options)


def refusal(checkpoint: Path, out: Path, *args: Any, kind: type[EdgertError] = ConvertError) -> Any:
    """The error of a conversion that must fail and leave no bundle, whole or in part."""
    with pytest.raises(kind) as info:
        calibrated(checkpoint, out, *args)
    assert not out.exists()
    assert not list(out.parent.glob("*.partial-*"))
    assert info.value.hint
    return info.value


def kept(out: Path) -> int:
    """Weights that the stage cache holds."""
    return (out.parent / "m.edge.stage/model/quantize/journal").read_bytes().count(b"\n")


# H17: texts that are none

GERMAN = "Es war einmal\nein schönes Märchen\n" * 40
TEXTS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("holds nothing, expected text",)),
    "whitespace": (b" \n\t\r\n" * 99, ("nothing but 495 characters of whitespace",)),
    "a mark alone": (b"\xef\xbb\xbf", ("holds nothing",)),
    "utf-16": (GERMAN.encode("utf-16"), ("is UTF-16, expected UTF-8",)),
    "utf-16 without mark": (TEXT.encode("utf-16-le"), ("a NUL character at line 1, column 2",)),
    "utf-32": (GERMAN.encode("utf-32"), ("is UTF-32, expected UTF-8",)),
    "latin-1": (
        GERMAN.encode("latin-1"),
        ("byte 0xf6 at line 2, column 8 (byte 21)", "not UTF-8"),
    ),
    "cut": (GERMAN.encode()[: GERMAN.encode().rfind(b"\xa4")], ("line 80, column 14",)),
    "binary": (b"\x7fELF\x02\x01\x01\n\x00\x00\xff", ("byte 0xff at line 2, column 3",)),
    "nul": (b"words\nmore\x00words\n" * 30, ("a NUL character at line 2, column 5",)),
    "giant line": (
        b"a line\n" + b"x" * (limits.CALIBRATION_LINE + 1),
        (f"line 2 has {limits.CALIBRATION_LINE + 1} characters, expected at most",),
    ),
}


@pytest.mark.parametrize("name", list(TEXTS))
def test_h17_a_text_that_is_none_is_refused_with_its_place(name: str, tmp_path: Path) -> None:
    data, said = TEXTS[name]
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    with pytest.raises(ConvertError) as info:
        Calibration.read(path)
    for part in (str(path), *said):
        assert part in info.value.message
    assert info.value.code == "calibration-text"
    assert info.value.hint


def test_h17_a_text_that_cannot_be_read(tmp_path: Path) -> None:
    for path, said in ((tmp_path, "irectory"), (tmp_path / "none", "No such file")):
        if os.name == "nt":
            said = "cannot be read"
        with pytest.raises(ConvertError, match=said):
            Calibration.read(path)


def test_h17_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbf" + GERMAN.encode())
    assert Calibration.read(path).text == GERMAN


@pytest.mark.parametrize(
    ("name", "said"),
    [("latin-1", "at line 2, column 8"), ("utf-16", "is UTF-16"), ("folder", "is a directory")],
)
def test_h17_at_the_command_line(
    good: Path, out: Path, tmp_path: Path, name: str, said: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXTS[name][0]) if name in TEXTS else path.mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "edgert", "convert", good, "-o", out),
            *("--quant", "int4", "--method", "gptq", "--calibration", path),
        ],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.parent.iterdir())


def test_h17_too_little_text_says_how_much_there_is(good: Path, out: Path) -> None:
    error = refusal(good, out, Calibration("too short", length=64))
    assert "the calibration text has 9 tokens, expected at least 64" in error.message


def test_h17_fewer_sequences_than_asked_are_no_secret(
    good: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edgert.notices._shown.clear()
    with caplog.at_level(logging.WARNING, "edgert"):
        calibrated(good, out, Calibration(TEXT, sequences=4000, length=64))
    assert "of 4000 sequences of 64: it is calibrated on these" in caplog.text


def test_h17_a_tokenizer_that_fails_names_the_longest_line(good: Path, out: Path) -> None:
    text = "short\n" * 50 + "x" * 500 + "\nshort"
    slow = ResourceError("tokenizing took more than 20 s", code="tokenize-time")
    with mock.patch("edgert.text.tokenizer.Tokenizer.encode", side_effect=slow):
        error = refusal(good, out, Calibration(text, length=64))
    assert "took more than 20 s; its longest line is line 51 with 500 characters" in error.message


# H17: weights and inputs that cannot be calibrated


def test_h17_nan_names_the_tensor_and_keeps_what_is_done(good: Path, out: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit(good, lambda tensors: tensors[name][1].__setitem__((3, 7), np.nan))
    error = refusal(good, out)
    assert error.code == "weight-values"
    assert f"tensor {name!r} holds 1 NaN" in error.message
    assert kept(out) > 3


def test_h17_a_weight_too_large_to_calibrate_with(good: Path, out: Path) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    edit(good, lambda tensors: tensors[name][1].__setitem__((0, 0), 1e30))
    error = refusal(good, out)
    assert error.code == "weight-range"
    assert "layers.0.o" in error.message
    assert kept(out) > 3


def test_h17_inputs_that_overflow_name_layer_and_tokens(good: Path, out: Path) -> None:
    def grow(tensors: Specs) -> None:
        for part in ("gate", "up", "down"):
            tensors[f"model.layers.0.mlp.{part}_proj.weight"][1][:] *= 1e5
        tensors["model.layers.0.post_attention_layernorm.weight"][1][:] = 1e12

    edit(good, grow)
    error = refusal(good, out)
    assert error.code == "calibration-values"
    assert error.message.startswith("layers.1.norm1"), "the first of what layer 0 made"
    assert "calibration inputs are NaN or infinite (sequence 1 of 4 of the calibration text)" in (
        error.message
    )
    assert kept(out) > 3


def finite(report: Any, out: Path) -> bool:
    with Bundle.open(out, verify="full"):
        return all(np.isfinite(weight.error) for weight in report.weights)


def test_h17_zero_weights_stay_zero_with_calibration(good: Path, out: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    edit(good, lambda tensors: tensors[name][1].fill(0))
    assert finite(calibrated(good, out), out)


def test_h17_inputs_that_are_all_zero_are_told(
    good: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "model.layers.1.post_attention_layernorm.weight"
    edit(good, lambda tensors: tensors[name][1].fill(0))
    edgert.notices._shown.clear()
    with caplog.at_level(logging.WARNING, "edgert"):
        assert finite(calibrated(good, out), out)
    assert "layers.1.gate_up: all its inputs are 0 on the calibration text" in caplog.text
    assert "layers.0" not in caplog.text


def test_h17_a_text_of_one_token_gives_singular_matrices_that_are_mended(
    good: Path, out: Path
) -> None:
    assert finite(calibrated(good, out, Calibration("a" * 300, 4, 64)), out)


def test_h17_a_matrix_that_no_damping_mends_names_its_weight(good: Path, out: Path) -> None:
    segment = Layers._segment

    def indefinite(*args: Any) -> tuple[dict[str, Inputs], Any]:
        found, passed = segment(*args)
        for name, inputs in found.items():
            side = len(inputs.gram.matrix)
            found[name] = Inputs(Gram(np.eye(side) - 1e9 * np.eye(side)[::-1], 256))
        return found, passed

    with mock.patch.object(Layers, "_segment", indefinite):
        error = refusal(good, out)
    assert error.code == "gram"
    assert error.message.startswith("weight 'layers.0.")
    assert kept(out) > 3


# H21: machines with too little memory


def test_h21_too_little_memory_is_refused_before_the_work_with_both_numbers(
    good: Path, out: Path
) -> None:
    with mock.patch.object(system_memory, "free", return_value=50_000_000):
        error = refusal(good, out, kind=ResourceError)
    assert error.code == "memory"
    assert "calibrating takes about 0.07 GB of memory (the largest matrix is layers." in (
        error.message
    )
    assert "0.05 GB are available" in error.message
    assert "--method rtn" in error.hint
    assert not (out.parent / "m.edge.stage").exists()
    with mock.patch.object(system_memory, "free", return_value=50_000_000):
        convert_tiny(good, out, quant="int4")  # rounding streams


@contextmanager
def failing(when: Callable[[int], bool]) -> Iterator[list[int]]:
    """No memory for so many values of a layer at a time; yields the numbers that there was for."""
    segment, held = Layers._segment, list[int]()

    def tried(self: Layers, graph: Any, given: Any, wanted: Any, bar: Any) -> Any:
        if when(len(wanted)):
            raise MemoryError
        held.append(len(wanted))
        return segment(self, graph, given, wanted, bar)

    with mock.patch.object(Layers, "_segment", tried):
        yield held


def test_h21_memory_that_ends_on_the_way_means_fewer_values_at_a_time_and_the_same_bytes(
    good: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = []
    edgert.notices._shown.clear()
    with caplog.at_level(logging.WARNING, "edgert"):
        for most in (2, 1):
            with failing(lambda count, most=most: count > most) as held:  # type: ignore[misc]
                calibrated(good, out)
            weights.append(next(out.glob("**/*.safetensors")).read_bytes())
            assert held == [most] * (8 // most), "qkv and o, gate_up and down, of two layers"
            assert (most == 1) == ("fewer at a time, in more passes" in caplog.text)
    assert weights[0] == weights[1]


def test_h21_memory_that_ends_for_one_matrix_is_an_error_that_names_it(
    good: Path, out: Path
) -> None:
    with failing(lambda _: True):
        error = refusal(good, out, kind=ResourceError)
    assert error.code == "memory"
    assert error.message.startswith("layers.0.")
    assert "64 by 64 matrix" in error.message
    assert kept(out) > 3
    with mock.patch("edgert.converters.quantize.job.gptq", side_effect=MemoryError):
        error = refusal(good, out, kind=ResourceError)
    assert error.message.startswith("weight 'layers.0.")


@pytest.mark.parametrize(
    "place",
    [
        "edgert.converters.stages.quantize.encode_weight",
        "edgert.converters.layers.quantize",
        "edgert.converters.quantize.job.quantize",
        "edgert.converters.stages.weight_cache.WeightCache.write",
    ],
)
def test_h21_memory_that_ends_anywhere_is_an_error_of_ours(
    place: str, good: Path, out: Path
) -> None:
    with mock.patch(place, side_effect=MemoryError("Unable to allocate 9.9 GiB")):
        error = refusal(good, out, kind=ResourceError)
    assert error.code == "memory"
    assert "Unable to allocate 9.9 GiB" in error.message


@pytest.mark.parametrize(("n", "k"), [(256, 768), (1024, 256), (512, 512)])
def test_h21_the_estimate_of_gptq_holds(n: int, k: int) -> None:
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((n, k)).astype(np.float32), rng.standard_normal((2 * k, k))
    gram = x.T @ x
    tracemalloc.start()
    try:
        gptq(w, gram, bits=4, group=32, clip=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"[{n}, {k}]: {peak / 1e6:.1f} MB of {gptq_bytes(n, k) / 1e6:.1f}")
    assert gptq_bytes(n, k) / 2 < peak < gptq_bytes(n, k)


def test_h21_the_estimate_counts_the_matrices_that_are_worked_on_at_a_time() -> None:
    graph = tiny_graph(quant="f32")
    matrices = inputs_of(graph)
    pieces = segments(graph, list(matrices.values()))
    one = needed(pieces, matrices, 100)
    sizes = {name: 8 << 30 for name in ("l0.qkv", "l0.o")}
    large = needed(pieces, matrices, 100, Work(1, sizes))
    two = needed(pieces, matrices, 100, Work(2, sizes))
    assert large > (8 << 30) > one
    assert two == large + (8 << 30), "qkv and o are of one segment"
    assert needed(pieces, matrices, 100, Work(4, sizes)) == two
