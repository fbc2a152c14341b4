"""The drawing model in the package: whole, with its card and calibration, and it draws what it is
asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgert
from edgert import demo
from edgert.bundle import Bundle
from edgert.evaluation.verify import verify_bundle
from edgert.image import caching

from .conftest import ROOT

NAMES = ("red apple", "rocket", "castle", "penguin")


def test_the_shipped_bundle_is_whole_and_has_its_calibration() -> None:
    report = verify_bundle(demo.image_bundle(), values=True)
    assert not report.problems()
    assert report.name == demo.IMAGE_NAME
    with Bundle.open(demo.image_bundle()) as bundle:
        table = caching.table_of(bundle)
        assert bundle.manifest.image is not None
        assert bundle.manifest.image.defaults["steps"] == 28
    assert table is not None
    assert len(table.t) == 28
    assert table.info.thresholds["sencache"]


def test_the_card_ships_with_the_model() -> None:
    card = (demo.image_bundle() / "README.md").read_text(encoding="utf-8")
    recipe = (ROOT / "recipes" / "demo_image" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card == recipe


def test_names_draw_their_pictures(shared_data: Path) -> None:
    """Each drawing's own picture, in one of its styles, is among the five nearest of 400."""
    pytest.importorskip("torch")
    import torch

    from benchmarks.image_demo import features
    from recipes.demo_image.sets import load_sets

    sets = load_sets(shared_data)
    own = [i for i, emoji in enumerate(sets.emoji) if emoji.name in NAMES]
    picks = sorted({*own, *range(0, len(sets.emoji), 8)})
    with edgert.load(demo.image_bundle(), kind="image") as model:
        made = [model(f"a {name}, 3d style", seed=1) for name in NAMES]
    assert all(pictures.settings["cache"] == "sencache" for pictures in made)
    assert all(pictures.evaluations <= 16 for pictures in made)
    drawings = features(np.stack([np.asarray(pictures[0]) for pictures in made]))
    ranks = torch.cdist(drawings, features(sets.images[picks])).topk(5, largest=False).indices
    near = [[sets.emoji[picks[i]].name for i in row] for row in ranks.tolist()]
    assert sum(name in row for name, row in zip(NAMES, near, strict=True)) >= 3, near
