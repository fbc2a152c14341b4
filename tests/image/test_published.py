"""Configs of published components are read whole, and give graphs of as many parameters."""

from __future__ import annotations

import math

import pytest
from edgert.converters.families import clip, pictures, t5
from edgert.converters.families.recipe import FamilyModel

from edgert.graph import Graph
from tests.image import published


def count(model: FamilyModel) -> int:
    """Parameters, after the graph was read as a file is."""
    graph = Graph.from_json(model.graph.to_json())
    return sum(math.prod(weight.shape) for weight in graph.weights.values())


@pytest.mark.parametrize("name", sorted(published.DENOISERS))
def test_published_denoisers_are_read(name: str) -> None:
    config, parameters = published.DENOISERS[name]
    faults: list[str] = []
    module = pictures.denoiser(config["_class_name"], config)
    side = module.read(config, faults).sample_size
    model = module.build(config, side, side, faults)
    assert not faults
    assert count(model) == parameters
    sized = {"height", "width", "aspect"} & {value.name for value in model.graph.inputs}
    assert bool(sized) == (name == "PixArt-alpha/PixArt-XL-2-1024-MS")


def test_published_text_encoders_are_read() -> None:
    faults: list[str] = []
    assert count(t5.build(published.T5_XXL, faults)) == 4_762_310_656
    assert count(clip.build(published.CLIP_L, faults)) == 123_060_480
    assert not faults
