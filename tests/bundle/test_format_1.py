"""A bundle of format 1, made by edgert 0.1.0, loads and answers as it did then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import edgert
from edgert.bundle import FORMAT, Bundle
from edgert.errors import BundleError

from ..closeness import assert_close

GOLDEN = Path(__file__).parents[1] / "golden"
OLD = GOLDEN / "format-1.edge"


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_it_answers_as_it_did(device: str) -> None:
    expected = np.load(GOLDEN / "format-1-logits.npy")
    with edgert.load(OLD, device=device, kv_bits=0 if device == "reference" else 32) as model:
        got = model.logits(list(range(4, 4 + len(expected))))
        assert_close(device, expected, got, rms=2e-3)
        answer = model.generate("hello world", max_tokens=12, temperature=0)
        assert list(answer.token_ids) == [115] * 12


def test_it_is_read_as_format_2() -> None:
    assert json.loads((OLD / "manifest.json").read_bytes())["format"] == 1
    with Bundle.open(OLD) as bundle:
        assert bundle.manifest.format == FORMAT
        assert {name: part.role for name, part in bundle.manifest.parts.items()} == {
            "model": "text"
        }
        assert bundle.part() == "model"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["parts"]["model"].update(role="text"), "parts.model.role"),
        (lambda m: m.update(image={}), "image"),
        (lambda m: m.update(kind="image"), "kind 'text'"),
        (lambda m: m["parts"].update(other=m["parts"].pop("model")), "called 'model'"),
    ],
)
def test_what_format_1_did_not_know_is_refused(change, words: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    copy = tmp_path / "old.edge"
    shutil.copytree(OLD, copy)
    manifest = json.loads((copy / "manifest.json").read_bytes())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BundleError, match=words):
        Bundle.open(copy)
