"""What is expected of a picture: pieces as often as they are run, seconds, memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from edgert.devices.load import load

import edgert
from edgert.bundle import Bundle
from edgert.demo import image_bundle
from edgert.errors import BundleError, RequestError
from edgert.forecast.pictures import picture_parts, picture_seconds
from edgert.forecast.rates import rates_of, scaled
from edgert.graph import Graph
from edgert.image.expected import Drawing, Expected
from edgert.image.model import ImageModel

from ..tiny import tiny_bundle


@pytest.fixture(scope="module")
def expected() -> Expected:
    with Bundle.open(image_bundle()) as bundle:
        return Expected(bundle)


@pytest.fixture(scope="module")
def model() -> Iterator[ImageModel]:
    with edgert.load(image_bundle(), threads=1, kind="image") as found:
        yield found


@pytest.mark.parametrize(
    ("cache", "nfe", "steps"),
    [("none", None, 8), ("auto", 14.0, 28), ("fixed", 4.0, 8), ("taylor", None, 9)],
)
def test_pieces_are_run_as_often_as_expected(
    expected: Expected, model: ImageModel, monkeypatch: pytest.MonkeyPatch, cache: str,
    nfe: float | None, steps: int,
) -> None:  # fmt: skip
    calls: Counter[str] = Counter()
    run = model.denoiser.run

    def counted(arrays: Mapping[str, Any], graph: Graph) -> Any:
        calls[graph.name] += 1
        return run(arrays, graph)

    monkeypatch.setattr(model.denoiser, "run", counted)
    made = model("a cat", steps=steps, cache=cache, nfe=nfe, seed=1)
    asked = Drawing(steps, cache=cache, nfe=nfe)
    loop = expected.denoising(asked)
    assert loop.surely
    assert loop.branches == 2
    # a calibrated threshold takes about so many
    off = 2.0 if cache == "auto" else 1e-9
    assert loop.evaluations == pytest.approx(made.evaluations, abs=off)
    denoising = [piece for piece in expected.pieces(asked) if piece.phase == "denoise"]
    times = sum(piece.times for piece in denoising)
    assert calls.total() == pytest.approx(times, abs=2 * off)
    assert len(calls) == len(denoising) / loop.branches


def test_what_finds_out_on_the_way_is_an_upper_bound(expected: Expected) -> None:
    loop = expected.denoising(Drawing(28, cache="easycache"))
    assert (loop.evaluations, loop.surely) == (28.0, False)
    assert expected.denoising(Drawing(4)).evaluations == 4  # too few steps for any cache


def test_calibrations_bound_what_can_be_left_out(expected: Expected) -> None:
    assert expected.table is not None
    shares = [share for share, _ in expected.table.info.thresholds["sencache"]]
    found = expected.denoising(Drawing(28, nfe=2.0))
    assert found.evaluations == pytest.approx(28 * min(shares))


def test_seconds_grow_with_steps_guidance_and_size(expected: Expected) -> None:
    rates = rates_of(load("laptop-avx2"))

    def seconds(**asked: object) -> float:
        given = Drawing(cache="none")._replace(**asked)  # type: ignore[arg-type]
        return picture_seconds(expected.pieces(given), rates)

    assert seconds(steps=8) < seconds(steps=16) < seconds(steps=16, width=256)
    parts = picture_parts(expected.pieces(Drawing(16, cache="none")), rates)
    alone = picture_parts(expected.pieces(Drawing(16, 1.0, cache="none")), rates)
    assert alone["denoise"] == pytest.approx(parts["denoise"] / 2, rel=0.1)
    assert alone["decode"] == parts["decode"]
    better = rates_of(scaled(load("laptop-avx2"), compute=2.0))
    assert picture_seconds(expected.pieces(Drawing()), better) < seconds(cache="auto")


def test_sizes_that_have_no_latents_are_refused(expected: Expected) -> None:
    with pytest.raises(RequestError, match="a side is 100, expected a multiple of 8"):
        expected.pieces(Drawing(width=100))


def test_a_model_that_writes_draws_nothing(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "tiny.edge", quant="int4")
    with Bundle.open(path) as bundle, pytest.raises(BundleError, match="expected 'image'"):
        Expected(bundle)
