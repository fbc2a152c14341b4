"""Text encoders against transformers."""

from __future__ import annotations

import numpy as np
import pytest
from edgert.converters.families import t5

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
