"""The recipe of the draft head, from prompts to its table, on a model of 656k parameters."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from recipes.draft_head import prepare, train


def test_the_recipe_from_prompts_to_its_table(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared_data / "lm-tinystories-656k"
    if not model.exists():
        pytest.skip(f"needs {model}")
    rng = np.random.default_rng(0)
    rows = [[1, *rng.integers(3, 500, 4 + i % 5).tolist()] for i in range(24)]
    arrays = dict(zip(("train", "train_sizes"), prepare.packed(rows[:16]), strict=True))
    arrays |= dict(zip(("held", "held_sizes"), prepare.packed(rows[16:]), strict=True))
    np.savez(tmp_path / "prompts.npz", **arrays, held_kinds=np.repeat(np.arange(4), 2))
    asked = [
        "train", "--model", str(model), "--work", str(tmp_path), "--tokens", "768", "--answer",
        "16", "--batch", "256", "--micro", "128", "--length", "64", "--vocabulary", "512",
        "--held", "1", "--measured", "6", "--prompts-at-once", "8", "--device", "cpu",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", asked)
    train.main()
    table = (tmp_path / "table.md").read_text("utf-8")
    assert table.count("\n| ") == 2 + 9, "a line for each gamma and temperature"
    assert "2602.23881" in table
    told = json.loads((tmp_path / "rows.json").read_text("utf-8"))
    assert told["heads"]["kl"]["tokens"] == told["heads"]["lambda"]["tokens"] == 768
    for row in told["rows"]:
        assert row["kl"][1] <= row["kl"][0] <= row["kl"][2]
        assert 1.0 <= row["lambda"][0] <= row["gamma"] + 1
        if row["temperature"] == 0:
            assert row["same"] == 1.0, "greedy answers do not depend on the head"
    ids = np.load(tmp_path / "answers.npy")
    (tmp_path / "table.md").unlink()
    for part in tmp_path.glob("row-7-*"):
        part.unlink()
    train.main()  # goes on: the heads stand, missing rows are measured again
    assert (tmp_path / "table.md").read_text("utf-8") == table
    assert np.array_equal(np.load(tmp_path / "answers.npy"), ids)
