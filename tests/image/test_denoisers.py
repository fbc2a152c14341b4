"""Denoisers against diffusers: whole, in pieces, and for other sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from edgert.converters.families import dit, pixart
from edgert.converters.families.recipe import FamilyModel

from edgert.errors import BundleError, ConvertError, RequestError
from edgert.graph import Graph
from edgert.image.pieces import blocks, pieces
from edgert.image.resize import resized
from tests.closeness import assert_close
from tests.image import models

pytest.importorskip("diffusers")
RMS = 1e-4
SIZES = [(8, 8), (6, 10)]
BUILDERS = {"DiTTransformer2DModel": dit.build, "PixArtTransformer2DModel": pixart.build}


@dataclass
class Case:
    """A tiny denoiser: diffusers' module, its config, and the weights of its graph."""

    name: str
    module: Any
    config: dict[str, Any]
    weights: dict[str, np.ndarray]

    def build(self, height: int, width: int) -> FamilyModel:
        faults: list[str] = []
        found = BUILDERS[self.config["_class_name"]](self.config, height, width, faults)
        assert not faults, faults
        return found


@pytest.fixture(scope="session", params=sorted(models.DENOISERS.keys() - models.UNETS))
def case(request: pytest.FixtureRequest) -> Case:
    module = models.denoiser(request.param)
    config = {"_class_name": type(module).__name__, **module.config}
    found = Case(request.param, module, config, {})
    tensors, model = models.tensors_of(module), found.build(8, 8)
    assert {part.name for r in model.tensors.values() for part in r.parts} == set(tensors)
    found.weights = models.weights_of(model, tensors)
    return found


@pytest.fixture(params=sorted(models.DEVICES))
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("size", SIZES)
def test_a_denoiser_answers_as_diffusers(case: Case, device: str, size: tuple[int, int]) -> None:
    if case.name.startswith("dit") and size[0] != size[1]:
        pytest.skip("diffusers' DiT takes square pictures only")
    inputs = models.inputs_of(case.name, size)
    graph = Graph.from_json(case.build(*size).graph.to_json())
    got = models.run(device, graph, case.weights, inputs)["out"]
    assert_close(case.name, models.expected(case.module, inputs, size), got, rms=RMS)


def test_pieces_compose_to_the_whole_bit_for_bit(case: Case, device: str) -> None:
    inputs: dict[str, Any] = models.inputs_of(case.name, (8, 8))
    graph = case.build(8, 8).graph
    whole = models.run(device, graph, case.weights, inputs)["out"]
    cut = pieces(graph, feature=True)
    for piece in (cut.embed, cut.body, cut.head):
        inputs |= models.run(device, Graph.from_json(piece.to_json()), case.weights, inputs)
    assert inputs["feature"].shape == inputs["embed.x"].shape == inputs["body.x"].shape
    assert np.array_equal(inputs["out"], whole)


def test_pieces_behind_the_first_block_compose_too(case: Case, device: str) -> None:
    inputs: dict[str, Any] = models.inputs_of(case.name, (8, 8))
    graph = case.build(8, 8).graph
    whole = models.run(device, graph, case.weights, inputs)["out"]
    cut = pieces(graph, start="first.x")
    for piece in (cut.embed, cut.body, cut.head):
        inputs |= models.run(device, piece, case.weights, inputs)
    assert np.array_equal(inputs["out"], whole)
    assert inputs["first.x"].shape == inputs["embed.x"].shape
    assert len(cut.body.nodes) < len(pieces(graph).body.nodes)


def test_a_body_runs_with_what_its_blocks_kept(case: Case, device: str) -> None:
    inputs: dict[str, Any] = models.inputs_of(case.name, (8, 8))
    graph = case.build(8, 8).graph
    cut, inner = pieces(graph), blocks(graph)
    assert len(inner.kept) == 2 * (3 if case.name.startswith("pixart") else 2)
    inputs |= models.run(device, cut.embed, case.weights, inputs)
    inputs |= models.run(device, inner.keep, case.weights, inputs)
    again = models.run(device, inner.reuse, case.weights, inputs)["body.x"]
    assert np.array_equal(inputs["body.x"], again)
    assert "dot_attention" not in {node.op for node in inner.reuse.nodes}


def test_the_head_and_the_body_read_nothing_of_the_latents(case: Case) -> None:
    cut = pieces(case.build(8, 8).graph)
    for piece in (cut.body, cut.head):
        assert "x" not in {value.name for value in piece.inputs}


def test_a_resized_graph_is_the_one_built_for_that_size(case: Case) -> None:
    for size in ((6, 10), (16, 8), (2, 2)):
        assert resized(case.build(8, 8).graph, (8, 8), size) == case.build(*size).graph
    cut = pieces(resized(case.build(8, 8).graph, (8, 8), (6, 10)))
    assert resized(pieces(case.build(8, 8).graph).body, (8, 8), (6, 10)) == cut.body


@pytest.mark.parametrize("size", [(7, 8), (8, 9), (1, 1), (0, 8)])
def test_sizes_that_do_not_divide_are_refused(case: Case, size: tuple[int, int]) -> None:
    with pytest.raises(RequestError, match=r"expected|does not divide") as error:
        resized(case.build(8, 8).graph, (8, 8), size)
    assert error.value.code == "image-size"
    with pytest.raises(ConvertError, match="multiples of the patch size 2"):
        case.build(*size)


def test_a_graph_without_the_values_of_a_denoiser_is_not_cut() -> None:
    faults: list[str] = []
    graph = dit.build(dict(models.DENOISERS["dit"][1]), 8, 8, faults).graph
    with pytest.raises(BundleError, match=r"computes no \['body.x'"):
        pieces(graph.cut([], ["embed.x"]))
