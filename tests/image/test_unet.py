"""UNets against diffusers: whole, and for other sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from edgert.converters.families import unet
from edgert.converters.families.recipe import FamilyModel

from edgert.errors import BundleError, ConvertError, RequestError
from edgert.graph import Graph
from edgert.image.pieces import pieces
from edgert.image.resize import resized
from tests.closeness import assert_close
from tests.image import models

pytest.importorskip("diffusers")
RMS = 1e-4


def built(case: str, height: int, width: int) -> FamilyModel:
    faults: list[str] = []
    found = unet.build(models.UNETS[case], height, width, faults)
    assert not faults, faults
    return found


@pytest.fixture(scope="session", params=sorted(models.UNETS))
def made(request: pytest.FixtureRequest) -> tuple[str, Any, dict[str, np.ndarray]]:
    """A case, diffusers' module, and the weights of its graph."""
    module = models.denoiser(request.param)
    faults: list[str] = []
    model = unet.build(dict(module.config), 8, 8, faults)  # with every key that diffusers writes
    assert not faults, faults
    tensors = models.tensors_of(module)
    assert {part.name for r in model.tensors.values() for part in r.parts} == set(tensors)
    return request.param, module, models.weights_of(model, tensors)


@pytest.mark.parametrize("device", sorted(models.DEVICES))
@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
def test_a_unet_answers_as_diffusers(made: Any, device: str, size: tuple[int, int]) -> None:
    case, module, weights = made
    inputs = models.inputs_of(case, size, captions=77)
    graph = Graph.from_json(built(case, *size).graph.to_json())
    got = models.run(device, graph, weights, inputs)["out"]
    assert_close(case, models.expected(module, inputs, size), got, rms=RMS)


@pytest.mark.parametrize("case", sorted(models.UNETS))
def test_a_resized_unet_is_the_one_built_for_that_size(case: str) -> None:
    for size in ((4, 12), (16, 8), (4, 4)):
        assert resized(built(case, 8, 8).graph, (8, 8), size) == built(case, *size).graph
    with pytest.raises(BundleError, match=r"computes no \['body.x', 'embed.x'\]"):
        pieces(built(case, 8, 8).graph)


@pytest.mark.parametrize("size", [(7, 8), (8, 9), (0, 8), (-4, 4), (2, 4)])
def test_sizes_that_levels_do_not_halve_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(RequestError, match=r"expected|does not divide") as error:
        resized(built("odd", 8, 8).graph, (8, 8), size)
    assert error.value.code == "image-size"
    with pytest.raises(ConvertError, match="multiples of 4, for 3 levels"):
        built("odd", *size)
