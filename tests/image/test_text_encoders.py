"""Text encoders against transformers."""

from __future__ import annotations

import numpy as np
import pytest
from edgert.converters.families import clip, t5

from tests.closeness import assert_close
from tests.image import models

pytest.importorskip("transformers")
RMS = 1e-4


@pytest.mark.parametrize("device", sorted(models.DEVICES))
@pytest.mark.parametrize("case", sorted(models.T5))
def test_t5_answers_as_transformers(case: str, device: str) -> None:
    import torch

    module, faults = models.t5(case), list[str]()
    model = t5.build(module.config.to_dict() | {"architectures": ["T5EncoderModel"]}, faults)
    assert not faults, faults
    weights = models.weights_of(model, models.tensors_of(module))
    for count in (1, 63):
        ids = np.random.default_rng(count).integers(0, 64, count).astype(np.int32)
        with torch.no_grad():
            expected = module(torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state[0]
        got = models.run(device, model.graph, weights, {"tokens": ids})["hidden"]
        assert_close(f"{case}, {count} tokens", expected.numpy(), got, rms=RMS)


@pytest.mark.parametrize("device", sorted(models.DEVICES))
@pytest.mark.parametrize("case", sorted(models.CLIP))
def test_clip_answers_as_transformers(case: str, device: str) -> None:
    import torch

    module, faults = models.clip(case), list[str]()
    kind = type(module).__name__
    model = clip.build(module.config.to_dict() | {"architectures": [kind]}, faults)
    assert not faults, faults
    weights = models.weights_of(model, models.tensors_of(module))
    ids = np.random.default_rng(4).integers(0, 62, 77).astype(np.int32)
    ids[20:] = 63  # the end token, which is the padding too
    with torch.no_grad():
        expected = module(torch.from_numpy(ids.astype(np.int64))[None])
    inputs = {
        "tokens": ids, "positions": np.arange(77, dtype=np.int32), "rows": np.int32([20]),
    }  # fmt: skip
    got = models.run(device, model.graph, weights, inputs)
    assert_close(case, expected.last_hidden_state[0].numpy(), got["hidden"], rms=RMS)
    if case == "clip-projection":
        assert_close("pooled", expected.text_embeds.numpy(), got["pooled"], rms=RMS)
