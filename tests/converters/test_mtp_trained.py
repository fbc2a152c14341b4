"""A layer for guesses that was trained with its model: how many of its guesses stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.calibrate import Calibration

import edgert
from edgert.text.speculative.options import DraftOptions
from tests.converters.checkpoints import make_model, write_tokenizer
from tests.converters.test_layouts import change
from tests.converters.test_mtp import converted, layer_of, published, tensors_of
from tests.text.speculative.models import NO_END, tokenizer

STEPS, LENGTH, TEXT = 700, 256, 150_000
ONE = DraftOptions("head", max_tokens=1, adapt=False)


def trained(ids: np.ndarray) -> tuple[Any, Any]:
    """A tiny Qwen 3.5 and its layer, trained together on a text: the next token, and the one
    behind it."""
    import torch

    torch.manual_seed(0)
    model = make_model("qwen3_5").train()
    own = layer_of(model)
    for name in ("fc", "norm_e", "norm_h", "norm"):
        setattr(own, name, getattr(own, name).requires_grad_())
    parts = [own.fc, own.norm_e, own.norm_h, own.norm, *own.layer.parameters()]
    leaves = [*model.parameters(), *parts]
    optimizer = torch.optim.AdamW(leaves, 3e-3, weight_decay=0.0)
    rng, lost = np.random.default_rng(0), torch.nn.functional.cross_entropy
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50) * (1 - step / STEPS)
        at = int(rng.integers(len(ids) - LENGTH))
        tokens = torch.from_numpy(ids[at : at + LENGTH].astype(np.int64))
        h = model.model(tokens[None], use_cache=False).last_hidden_state[0]
        embedded = model.model.embed_tokens(tokens)
        _, guesses = published(model, own, embedded[1:-1], h[:-2])
        loss = lost(model.lm_head(h[:-1]), tokens[1:]) + 0.5 * lost(guesses, tokens[2:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
    for name in ("fc", "norm_e", "norm_h", "norm"):
        setattr(own, name, getattr(own, name).detach())
    return model.eval(), own


def bundle_of(model: Any, own: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    write_tokenizer(folder)
    added = tensors_of(own, apart=False)
    change(folder, lambda tensors: {**tensors, **added})
    return converted(folder, "f32")


def foretold(model: Any, own: Any, prompt: list[int], answer: list[int]) -> tuple[int, int]:
    """Guesses along an answer by the published equations, one a step, and how many stand."""
    import torch

    tokens = torch.tensor([*prompt, *answer])
    with torch.no_grad():
        h = model.model(tokens[None], use_cache=False).last_hidden_state[0]
        embedded = model.model.embed_tokens(tokens)
        guesses = published(model, own, embedded[1:], h[:-1])[1].argmax(-1).tolist()
    made = stood = 0
    at = len(prompt)  # of the newest token
    while at + 1 < len(tokens):
        right = guesses[at - 1] == int(tokens[at + 1])
        made, stood, at = made + 1, stood + right, at + 1 + right
    return made, stood


@pytest.mark.slow
def test_a_trained_layer_s_guesses_stand_as_often_as_its_equations_say(tmp_path: Path) -> None:
    import torch

    torch.set_num_threads(1)
    ids = np.asarray(tokenizer().encode(Calibration.sample().text[:TEXT]), np.int32)
    train, held = ids[:-6000], ids[-6000:]
    model, own = trained(train)
    prompts = [held[at : at + 60].tolist() for at in range(0, 6000, 750)]
    shares = {}
    for name, layer in (("trained", own), ("random", layer_of(model))):
        path = bundle_of(model, layer, tmp_path / name)
        with edgert.load(path, threads=1, draft="none") as loaded:
            for heat in (0.0, 0.7, 1.0):
                counts = np.zeros(2, int)
                for seed, prompt in enumerate(prompts):
                    options = {"max_tokens": 120, "temperature": heat, "seed": seed, **NO_END}
                    got = loaded.generate(prompt, draft=ONE, **options)
                    assert got.drafting is not None
                    counts += got.drafting.proposed, got.drafting.accepted
                    if heat:
                        continue
                    made, stood = foretold(model, layer, prompt, list(got.token_ids))
                    assert abs(got.drafting.proposed - made) <= 1
                    assert abs(got.drafting.accepted - stood) <= 1
                shares[name, heat] = counts[1] / counts[0]
                print(f"{name}, temperature {heat}: {counts[1]} of {counts[0]} guesses stood")
    for heat in (0.0, 0.7, 1.0):  # the coupled choice lets one byte in six of a random layer stand
        assert shares["trained", heat] > max(0.5, 3 * shares["random", heat])
