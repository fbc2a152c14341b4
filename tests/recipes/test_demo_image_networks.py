"""The networks of the picture recipe against diffusers and transformers; its tokenizer; what the
caption encoder learns.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from recipes.demo_image import (  # noqa: E402
    bind,
    pool,
    sample,
    scenes,
    text_encoder,
)
from recipes.demo_image.denoiser import (  # noqa: E402
    TINY_DENOISER,
    Denoiser,
    DenoiserConfig,
    transformer_config,
)
from recipes.demo_image.text_encoder import TINY_TEXT, TextEncoder  # noqa: E402
from recipes.demo_image.tokenizer import (  # noqa: E402
    encode,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer():
    texts = [s.caption for kind in pool.KINDS for s in scenes.make_scenes(kind, 200)]
    return train_tokenizer(texts, TINY_TEXT.vocab)


def _noisy(model: torch.nn.Module, *, seed: int = 0) -> torch.nn.Module:
    """Every parameter away from its start, zeros included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


def test_tokens_end_with_the_mark_and_any_text_is_read(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    again = load_tokenizer(tmp_path)
    texts = ["A red APPLE", "a red apple", "", "漢字 🍎 \x00 é", "cat " * 100]
    ids = encode(again, texts)
    assert ids.dtype == np.int16
    assert (ids[0] == ids[1]).all()
    assert ids[2].tolist() == [1] + [0] * (ids.shape[1] - 1)
    assert all(1 in row and 2 not in row for row in ids)
    assert ids[4, -1] == 1


def test_the_tokenizer_is_read_by_transformers(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    save_tokenizer(tokenizer, tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    out = theirs(["A red ring", ""], padding="max_length", max_length=12)
    assert out["input_ids"] == encode(tokenizer, ["A red ring", ""], length=12).tolist()
    assert out["attention_mask"][1] == [1] + [0] * 11


def test_the_text_encoder_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = TINY_TEXT
    ours = _noisy(TextEncoder(config))
    theirs = transformers.T5EncoderModel(
        transformers.T5Config(**text_encoder.text_config(config))
    ).eval()
    missing = theirs.load_state_dict(text_encoder.exported(ours), strict=False)
    assert set(missing.missing_keys) <= {"encoder.embed_tokens.weight"}
    assert not missing.unexpected_keys
    ids = torch.randint(0, config.vocab, (3, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 40, dtype=torch.bool)
    mask[0, 7:] = False
    with torch.no_grad():
        a, b = ours(ids, mask), theirs(ids, attention_mask=mask.long())[0]
    assert float((a - b)[mask].abs().max()) < 1e-4


def test_nouns_are_told_where_their_things_stand(tokenizer):
    scene = scenes.make_scene("shapes", 3, things=3)
    offsets = tokenizer.encode(scene.caption).offsets
    told = bind.targets(scene, offsets)
    for thing, (x, y) in zip(scene.things, bind.sides(scene), strict=True):
        begin = scene.caption.index(thing.name)
        words = [
            i for i, (left, right) in enumerate(offsets)
            if right > left >= begin - 1 and right <= begin + len(thing.name)
        ]  # fmt: skip
        assert words
        assert (told[words] == (x, y, 1)).all()
    first, second, third = bind.sides(scene)
    assert [a + b + c for a, b, c in zip(first, second, third, strict=True)] == [0, 0]
    assert abs(first[0]) == abs(first[1]) == 1


def test_the_caption_encoder_learns_where_things_stand(tokenizer):
    torch.manual_seed(0)
    encoder = TextEncoder(TINY_TEXT)
    config = bind.BindConfig(steps=350, rows=64, lr=4e-3, scenes=1500)
    assert bind.bind(encoder, tokenizer, config) > 0.9


def test_the_denoiser_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    config = replace(TINY_DENOISER, layers=3)
    ours = _noisy(Denoiser(config))
    theirs = diffusers.PixArtTransformer2DModel.from_config(transformer_config(config)).eval()
    theirs.load_state_dict(ours.state_dict())
    z = torch.randn(2, 32, 16, 16, generator=torch.Generator().manual_seed(1))
    caption = torch.randn(2, 9, config.caption, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 4:] = False
    time = torch.tensor([3.5, 998.0])
    with torch.no_grad():
        a = ours(z, time, caption, mask)
        b = theirs(z, caption, time, encoder_attention_mask=mask.long()).sample
    assert float((a - b).abs().max()) < 1e-4


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_schedule_is_that_of_diffusers(shift):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(
        sample.scheduler_config(shift)
    )
    scheduler.set_timesteps(28)
    assert torch.allclose(scheduler.sigmas.double(), sample.sigmas(28, shift), atol=1e-6)


def test_the_schedule_is_that_of_the_specification():
    found = sample.sigmas(28, 3.0)
    assert found[[0, 1, 2, -4, -3, -2, -1]].tolist() == pytest.approx(
        [1, 0.98738, 0.97411, 0.19983, 0.11091, 0.00892857, 0], abs=5e-6
    )


def test_the_full_model_is_small_enough():
    size = Denoiser(DenoiserConfig()).size
    assert 15_000_000 <= size <= 20_000_000
    assert TextEncoder(text_encoder.TextConfig()).config.vocab <= 8192
