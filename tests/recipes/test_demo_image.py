"""The picture recipe: plans and their captions, detectors, resume, the exported folder, and
all of it with `--tiny`. Its networks are in test_demo_image_networks.py.
"""

from __future__ import annotations

import json
import math
import os
import random
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")
ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("EDGERT_SHARED_DATA", ROOT.parent / "shared" / "data"))
sys.path.insert(0, str(ROOT))

from recipes.demo_image import (  # noqa: E402
    detector,
    export,
    pool,
    sample,
    scenes,
    sets,
)
from recipes.demo_image.autoencoder import Autoencoder, load_autoencoder  # noqa: E402
from recipes.demo_image.denoiser import (  # noqa: E402
    TINY_DENOISER,
)
from recipes.demo_image.evaluate import SHEET, cut_to_content  # noqa: E402
from recipes.demo_image.png import png, write_sheet  # noqa: E402
from recipes.demo_image.render import Renderer, shifted  # noqa: E402
from recipes.demo_image.subjects import BACKGROUNDS, NAMES, SUBJECTS  # noqa: E402
from recipes.demo_image.text_encoder import TINY_TEXT  # noqa: E402
from recipes.demo_image.tokenizer import (  # noqa: E402
    encode,
    train_tokenizer,
)
from recipes.demo_image.train import Model, TrainConfig, Trainer, load_trained  # noqa: E402

PICTURES = [DATA / name for name in (*sets.FOLDERS.values(), "vae-taef2")]
needs_data = pytest.mark.skipif(
    not all(folder.exists() for folder in PICTURES), reason=f"the open pictures are not at {DATA}"
)


@pytest.fixture(scope="module")
def tokenizer():
    texts = [s.caption for kind in pool.KINDS for s in scenes.make_scenes(kind, 200)]
    return train_tokenizer(texts, TINY_TEXT.vocab)


@pytest.fixture(scope="module")
def drawn() -> tuple[Renderer, detector.EmojiDetector]:
    """Renderer and detector of the subjects, from every thousandth picture and all subjects."""
    cut, places = sets.sprites(sets.load_sets(DATA, every=1000))
    return Renderer(cut, places), detector.EmojiDetector(cut, places)


def _noisy(model: torch.nn.Module, *, seed: int = 0) -> torch.nn.Module:
    """Every parameter away from its start, zeros included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", pool.KINDS)
def test_scenes_are_seeded_and_their_captions_are_true(kind):
    made = scenes.make_scenes(kind, 400)
    assert made == scenes.make_scenes(kind, 400)
    assert {len(s.things) for s in made} == {1, 2, 3}
    for scene in made:
        assert not scenes.unseen(tuple(t.name for t in scene.things))
        for thing in scene.things:
            assert thing.name in scene.caption
            assert thing.side / 2 <= min(thing.x, thing.y) + 1e-6
            assert max(thing.x, thing.y) <= scenes.SIZE - thing.side / 2 + 1e-6
        for first, relation, second in scene.clauses:
            assert scenes.relations(scene.things[first], scene.things[second]) == {relation}
        if scene.background not in ("", "white"):
            assert f"{scene.background} background" in scene.caption


@pytest.mark.parametrize("kind", pool.KINDS)
def test_held_out_scenes_show_pairs_that_training_never_does(kind):
    for scene in scenes.make_scenes(kind, 60, held_out=True, things=2):
        assert scenes.is_held_out(*(t.name for t in scene.things))
    names = NAMES if kind == "emoji" else scenes.SHAPE_NAMES
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    assert 0.15 < sum(scenes.is_held_out(*pair) for pair in pairs) / len(pairs) < 0.25


@pytest.mark.parametrize(
    ("x", "y", "side", "true"),
    [
        (64, 20, 20, {"above"}),
        (20, 64, 20, {"left"}),
        (110, 110, 10, {"right", "below"}),  # both: the corner
        (64, 64, 20, set()),  # the same place
        (64, 59, 30, set()),  # within a tenth of both sides
    ],
)
def test_relations_follow_the_rule(x, y, side, true):
    one, two = scenes.Thing("a", x, y, side), scenes.Thing("b", 64, 64, side)
    assert scenes.relations(one, two) == true


def test_components_are_four_connected():
    picture = torch.zeros(1, 6, 7, dtype=torch.bool)
    picture[0, 0, :5] = picture[0, :4, 0] = picture[0, 4, 1] = picture[0, 5, 5:] = True
    labels = detector.components(picture)[0]
    assert len(labels[labels >= 0].unique()) == 3  # the corner touches by a diagonal only
    assert (labels[picture[0]] >= 0).all()
    assert (labels[~picture[0]] == -1).all()
    assert labels[0, 4] == labels[3, 0]


def test_the_shape_detector_finds_every_rendered_shape():
    made = scenes.make_scenes("shapes", 60, first=10**9)
    images = (Renderer(torch.zeros(1, 4, 128, 128), {}).shapes(made) * 255).round() / 255
    found = detector.find_shapes(images)
    verdicts = [detector.judge(s, f) for s, f in zip(made, found, strict=True)]
    assert detector.rates(verdicts) == {
        "pictures": 60, "objects": 1.0, "nothing else": 1.0, "relations given objects": 1.0,
        "axes given objects": 1.0, "right": 1.0,
    }  # fmt: skip
    turned = detector.find_shapes(images.rot90(2, (2, 3)))  # left is right, above is below
    several = [i for i, s in enumerate(made) if len(s.things) > 1]
    for i in several:
        verdict = detector.judge(made[i], turned[i])
        assert not verdict.relations
        assert verdict.axes or not verdict.objects  # a turned triangle is no triangle


def test_a_second_copy_or_a_missing_thing_is_wrong():
    scene = scenes.make_scene("shapes", 5, things=2)
    there = list(scene.things)
    assert detector.judge(scene, there).right
    assert not detector.judge(scene, there[:1]).right
    assert not detector.judge(scene, [*there, there[0]]).objects
    other = replace(there[0], name="unknown")
    assert detector.judge(scene, [*there, other]) == detector.Verdict(True, False, True, True)


@needs_data
def test_the_emoji_detector_finds_every_rendered_subject(drawn):
    renderer, find = drawn
    made = scenes.make_scenes("emoji", 60, first=10**9)
    found = find((renderer(made) * 255).round() / 255)
    verdicts = [
        detector.judge(s, [thing for thing, _ in f]) for s, f in zip(made, found, strict=True)
    ]
    assert detector.rates(verdicts)["right"] >= 0.98
    for scene, things in zip(made, found, strict=True):
        exact = {t.name: t for t in scene.things}
        for thing, style in things:
            if thing.name in exact:
                assert style == scene.style
                assert math.hypot(thing.x - exact[thing.name].x, thing.y - exact[thing.name].y) < 8


@needs_data
def test_the_sets_have_all_subjects_in_both_styles_and_unique_names(drawn):
    found = sets.load_sets(DATA, every=7)
    for style in sets.STYLES:
        names = [e.name for e in found.emoji if e.style == style]
        assert len(names) == len(set(names))
        assert set(SUBJECTS) <= set(names)
        for name, points in SUBJECTS.items():
            assert found.emoji[found.index(points, style)].name == name
    assert found.images.shape[1:] == (128, 128, 3)
    sprites = drawn[0].large
    assert sprites.shape == (2 * len(SUBJECTS), 4, 128, 128)
    assert bool((sprites[:, :3] <= sprites[:, 3:] + 1e-4).all())  # premultiplied
    rng = random.Random(0)
    said = [sets.captions(e, rng) for e in found.emoji]
    assert all(text == text.strip().lower() and text for text in said)


def test_moved_pictures_keep_their_white_border():
    images = torch.full((3, 128, 128, 3), 255, dtype=torch.uint8)
    images[:, 40:90, 40:90] = 0
    moved = shifted(images, pool.places(3))
    assert moved.shape == (3, 3, 128, 128)
    assert float(moved[..., 0].min()) > 0.999
    assert 0.6 < float((1 - moved).sum() / (3 * 3 * 2500)) < 1.02
    cut = cut_to_content(moved[0])
    assert float(cut[:, 4:-4, 4:-4].mean()) < 0.005  # the content fills the square


@needs_data
def test_the_autoencoder_keeps_a_picture():
    model = load_autoencoder(DATA)
    images = torch.from_numpy(sets.load_sets(DATA, every=1000).images[:4])
    x = images.permute(0, 3, 1, 2).float() / 255
    model.shift, model.scale = 0.02, 1.3
    z = model.encode(x)
    assert z.shape == (4, 32, 16, 16)
    error = (model.decode(z) - x).square().mean()
    assert -10 * math.log10(float(error)) > 27


def _random_pool(tokenizer) -> pool.Pool:
    """Small parts of random latents; three captions, each with a picture of its own."""
    generator = torch.Generator().manual_seed(0)
    parts = {}
    for name in ("single", *pool.KINDS):
        z = torch.randn(3, 32, 16, 16, generator=generator).half()
        texts = [f"a {colour} {name}" for colour in ("red", "green", "blue")]
        parts[name] = pool.Part(z, torch.from_numpy(encode(tokenizer, texts))[:, None])
    return pool.Pool(parts, parts, Autoencoder(), Renderer(torch.zeros(1, 4, 128, 128), {}))


def _config(**changes: object) -> TrainConfig:
    base = TrainConfig(
        steps=6, rows=6, warmup=0.0, device="cpu", compile=False, log_every=2, validate_every=2.0,
        checkpoint_every=0.0,
    )  # fmt: skip
    return replace(base, **changes)


def test_resume_is_exact(tokenizer, tmp_path):
    drawn = _random_pool(tokenizer)
    whole = Trainer(TINY_TEXT, TINY_DENOISER, _config(), drawn, tmp_path / "whole")
    whole.run()
    for stop in (2, 5, None):
        config = _config(stop_after=stop)
        part = Trainer(TINY_TEXT, TINY_DENOISER, config, drawn, tmp_path / "parts")
        part.run()
    for name, weight in whole.average.state_dict().items():
        assert torch.equal(weight, part.average.state_dict()[name]), name


def test_training_lowers_the_loss_and_learns_what_a_caption_means(tokenizer, tmp_path):
    drawn = _random_pool(tokenizer)
    config = _config(steps=60, rows=12, lr=5e-3, ema=0.9, warmup=0.1)
    trainer = Trainer(TINY_TEXT, TINY_DENOISER, config, drawn, tmp_path)
    before = trainer.validate()
    trainer.run()
    after = trainer.validate()
    assert all(after[name] < 0.9 * before[name] for name in before), (before, after)


def test_a_run_by_the_clock_ends_at_its_deadline(tokenizer, tmp_path):
    import time

    drawn = _random_pool(tokenizer)
    config = _config(steps=None, deadline=time.time() + 4)
    trainer = Trainer(TINY_TEXT, TINY_DENOISER, config, drawn, tmp_path)
    trainer.run()
    assert trainer.step_count > 0
    assert time.time() < config.deadline + 10
    assert trainer.rate(0.999) < 0.01 * config.lr
    with pytest.raises(ValueError, match="set one of steps, seconds and deadline"):
        _config(seconds=3.0)


@needs_data
def test_the_exported_folder_is_read_back(tokenizer, tmp_path):
    model = _noisy(Model(TINY_TEXT, TINY_DENOISER))
    results = {
        "parameters": {"denoiser": 1, "text encoder": 1}, "tuning": [], "retrieval": {},
        "scenes": {}, "ceiling": {}, "sampling": {"steps": 28, "guidance": 3.0, "shift": 2.0},
    }  # fmt: skip
    latents = {"shift": 0.01, "scale": 1.25}
    export.export(model, tokenizer, latents, results, DATA, tmp_path / "out")
    again, autoencoder = export.load_export(tmp_path / "out")
    assert (autoencoder.shift, autoencoder.scale) == (0.01, 1.25)
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight.bfloat16().float()), name
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == "PixArtSigmaPipeline"
    assert all((tmp_path / "out" / part).is_dir() for part in index if not part.startswith("_"))
    z = sample.generate(again.denoiser, again.text, tokenizer, ["a red ring"], steps=2)
    assert bool(z.isfinite().all())


def test_a_png_holds_the_pixels(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data = png(pixels)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (7, 5)
    begin = data.index(b"IDAT")
    size = struct.unpack(">I", data[begin - 4 : begin])[0]
    lines = np.frombuffer(zlib.decompress(data[begin + 4 : begin + 4 + size]), np.uint8)
    lines = lines.reshape(5, 22)
    assert (lines[:, 0] == 2).all()
    sums = np.cumsum(lines[:, 1:].astype(np.int64), axis=0) % 256
    assert (sums.reshape(5, 7, 3) == pixels).all()
    write_sheet(torch.rand(5, 3, 16, 16), 2, tmp_path / "sheet.png", side=8)
    assert struct.unpack(">II", (tmp_path / "sheet.png").read_bytes()[16:24]) == (28, 40)


def test_the_sheet_asks_for_what_training_names():
    assert len(SHEET) == 48
    assert "white" in BACKGROUNDS


@needs_data
def test_tiny_runs_the_whole_recipe(tmp_path):
    command = [sys.executable, "-m", "recipes.demo_image.run", "--tiny"]
    command += ["--data", str(DATA), "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "final" / "results.json").read_text())
    assert results["retrieval"]["pictures"] == 6
    assert set(results["ceiling"].values()) == {1.0}
    assert "edgert's demo picture model" in (tmp_path / "export" / "README.md").read_text()
    model, _ = load_trained(tmp_path / "final" / "checkpoint.pt")
    assert model.denoiser.config == TINY_DENOISER
    export.load_export(tmp_path / "export")
