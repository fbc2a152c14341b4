"""Row H06 of draft heads: floats that are no numbers guess nonsense, and change no text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgert
from edgert.bundle import Bundle
from edgert.errors import BundleError
from edgert.evaluation.verify import verify_bundle
from tests.hostile.corpus_draft import HEAD_WEIGHTS, add_head
from tests.hostile.spoil import MANIFEST, header_of
from tests.tiny import reseal, tiny_bundle

NO_END: dict[str, Any] = {"logit_bias": {1: -100.0}}
VALUES = {"nan": np.nan, "infinite": np.inf, "minus infinite": -np.inf}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny_bundle(tmp_path_factory.mktemp("draft") / "good.edge")
    add_head(path)
    return path


def spoiled(good: Path, out: Path, tensor: str, value: float) -> Path:
    """The bundle with all of one of its head's tensors set to a value."""
    import shutil

    shutil.copytree(good, out)
    raw = (out / HEAD_WEIGHTS).read_bytes()
    header, data = header_of(raw)
    begin, end = header[tensor]["data_offsets"]
    kind = {"F32": "<f4", "F16": "<f2"}[header[tensor]["dtype"]]
    count = (end - begin) // np.dtype(kind).itemsize
    put = np.full(count, value, kind).tobytes()
    (out / HEAD_WEIGHTS).write_bytes(raw[: len(raw) - len(data)] + data[:begin] + put + data[end:])
    reseal(out)
    return out


def test_the_good_head_is_good(good: Path) -> None:
    Bundle.open(good).close()
    assert verify_bundle(good, values=True).ok
    with edgert.load(good, threads=1, draft=edgert.DraftOptions("head", adapt=False)) as model:
        got = model.generate("Once upon", max_tokens=40, **NO_END)
        assert got.drafting is not None
        assert got.drafting.proposed > 0


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("tensor", ["head.scales", "fc.scales", "norm", "inv_freq"])
def test_h06_a_head_without_numbers_changes_no_text(
    good: Path, tmp_path: Path, tensor: str, value: str
) -> None:
    path = spoiled(good, tmp_path / "bad.edge", tensor, VALUES[value])
    report = verify_bundle(path, values=True)
    assert any(tensor in problem.message for problem in report.problems())
    with edgert.load(path, threads=1) as model:
        for verify in ("coupled", "rejection"):
            draft = edgert.DraftOptions("head", verify=verify, adapt=False)
            for options in ({"temperature": 0.0}, {"temperature": 0.9, "seed": 3, "top_k": 20}):
                plain = model.generate(
                    "Once upon", max_tokens=30, draft="none", **options, **NO_END
                )
                got = model.generate("Once upon", max_tokens=30, draft=draft, **options, **NO_END)
                assert len(got.token_ids) == 30
                if verify == "coupled" or not options["temperature"]:
                    assert got.token_ids == plain.token_ids


def test_a_head_of_another_model_is_refused(good: Path, tmp_path: Path) -> None:
    """A head of the same shapes whose part says that it reads tokens."""
    path = tiny_bundle(tmp_path / "other.edge", width=32, heads=2, kv_heads=1)
    manifest = json.loads((good / MANIFEST).read_bytes())
    mine = json.loads((path / MANIFEST).read_bytes())
    for name in (
        manifest["draft"]["ids"],
        *(manifest["parts"]["draft"][n] for n in ("graph", "weights")),
    ):
        (path / name).write_bytes((good / name).read_bytes())
        mine["files"][name] = manifest["files"][name]
    mine["parts"]["draft"] = manifest["parts"]["draft"]
    (path / MANIFEST).write_text(json.dumps(mine), encoding="utf-8")
    reseal(path, draft=manifest["draft"])
    with pytest.raises(BundleError, match="the draft part takes rows") as caught:
        edgert.load(path, threads=1, draft="head")
    assert caught.value.code == "draft-head"
