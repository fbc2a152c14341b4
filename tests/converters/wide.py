"""A checkpoint with matrices that COMPOT factors, and a text to calibrate on."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from edgert.converters.calibrate import Calibration
from edgert.converters.convert import convert
from edgert.converters.report import ConvertReport

from benchmarks import make_checkpoint as maker
from edgert.bundle import Bundle
from edgert.session import SessionOptions, open_session
from edgert.session.base import Feed
from edgert.text.tokenizer import Tokenizer

TEXT = " ".join(f"{i} times {j} is {i * j}." for i in range(60) for j in range(60))
CALIBRATION = Calibration(TEXT, sequences=8, length=64)
# Two layers of 128 channels: qkv [256, 128], o [128, 128], gate_up [192, 128], and down [128, 96],
# which has a side below 128 and is not factored.
SHAPE = (2, 128, 4, 2, 96, 512, True, "llama")
FACTORED = [f"layers.{i}.{name}" for i in range(2) for name in ("qkv", "o", "gate_up")]


def wide_checkpoint(folder: Path) -> Path:
    """The checkpoint, in a folder of its own."""
    with mock.patch.dict(maker.SHAPES, {"wide": SHAPE}):
        return maker.make_checkpoint("wide", folder / "wide", dtype="f32")


def converted(checkpoint: Path, out: Path, **options: Any) -> ConvertReport:
    """A conversion without golden prompts; calibrated on `CALIBRATION` unless told otherwise."""
    options = {"golden": False, "progress": False, "threads": 1} | options
    return convert(checkpoint, out, **{"calibration": CALIBRATION, **options})


def weights(out: Path) -> bytes:
    return (out / "weights.safetensors").read_bytes()


def encodings(out: Path) -> dict[str, str]:
    """Of the matrices."""
    with Bundle.open(out, verify="full") as bundle:
        found = bundle.graph().weights
    return {name: weight.encoding for name, weight in found.items() if len(weight.shape) == 2}


def logits(out: Path, device: str = "reference", **options: Any) -> np.ndarray:
    """float32 [64, V] of other tokens of the text, the same ones for all bundles."""
    with Bundle.open(out) as bundle:
        ids = np.asarray(Tokenizer.from_bundle(bundle).encode(TEXT)[-64:], np.int32)
        session = open_session(bundle, SessionOptions(device=device, **options))
        try:
            return session.step([Feed(session.new_state(), ids, "all")])[0].logits.copy()
        finally:
            session.close()
