"""Plans of pictures: what is tried, what is chosen, what a table of measured scores changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from edgert.devices.load import load

from edgert.bundle import Bundle
from edgert.demo import image_bundle
from edgert.errors import RequestError
from edgert.forecast.pictures import picture_seconds
from edgert.forecast.rates import rates_of
from edgert.image.expected import Expected
from edgert.planning import page
from edgert.planning.cards import Workload, workload_of
from edgert.planning.drawings import Drawn, Row, Sketch, asked_of, read_rows, sketches
from edgert.planning.pictures import prescribe_pictures

from ..cli.conftest import Edgert, edgert  # noqa: F401

DEVICE = load("laptop-avx2")
CARDS = """
[[picture]]
model = "edgert-draw"
steps = 28
score = 0.99
[[picture]]
model = "edgert-draw"
steps = 28
nfe = 14
score = 0.98
"""


@pytest.fixture(scope="module")
def drawing() -> Expected:
    with Bundle.open(image_bundle()) as bundle:
        return Expected(bundle)


def drawn(expected: Expected, *rows: Row) -> list[Drawn]:
    return [Drawn("edgert-draw", expected, 2e7, rows)]


def asked(seconds: float | None, **more: int) -> Workload:
    return workload_of({"kind": "image", "total_budget_s": seconds, **more})


def test_a_tighter_budget_takes_fewer_evaluations(drawing: Expected) -> None:
    chosen = []
    for seconds in (None, 3.0, 0.8):
        plan = prescribe_pictures(DEVICE, asked(seconds), drawn(drawing))
        assert plan.choice is not None
        one = plan.choice.candidate
        assert isinstance(one, Sketch)
        rates = rates_of(DEVICE)
        again = drawing.pieces(asked_of(one, plan.workload, rates.threads))
        assert plan.choice.costs.total_s == pytest.approx(picture_seconds(again, rates))
        chosen.append((one.nfe or one.steps, plan.choice.quality.mean))
        if seconds is not None:
            assert plan.binding == "seconds a picture"
    assert chosen == sorted(chosen, reverse=True)
    assert len(set(chosen)) == 3


def test_evaluations_are_those_that_the_calibration_can_take(drawing: Expected) -> None:
    for _, one, row in sketches(drawn(drawing), DEVICE, asked(None)):
        assert row is None
        if one.nfe:
            found = drawing.denoising(asked_of(one, asked(None), 1))
            assert found.evaluations == pytest.approx(one.nfe, abs=0.51)


def test_measured_scores_are_the_candidates(drawing: Expected) -> None:
    rows = Row("edgert-draw", 28, 0.99), Row("edgert-draw", 28, 0.98, nfe=14.0)
    plan = prescribe_pictures(DEVICE, asked(None), drawn(drawing, *rows, Row("other", 4, 1.0)))
    assert plan.considered == len([r for r in rows]) * len(DEVICE.providers)
    assert plan.choice is not None
    assert plan.choice.quality.source == "measured"
    assert plan.choice.quality.mean == 0.99
    assert not plan.measure


def test_nothing_that_fits_says_how_near_it_is(drawing: Expected) -> None:
    plan = prescribe_pictures(load("raspberry-pi-5-8gb"), asked(1e-3), drawn(drawing))
    assert plan.choice is None
    assert len(plan.refused) == 5
    assert all(row.share > 1 for row in plan.refused)
    assert "Nothing keeps the limits" in page.markdown(plan)


def test_a_size_that_no_model_has_is_refused(drawing: Expected) -> None:
    with pytest.raises(RequestError, match="no model draws such pictures"):
        prescribe_pictures(DEVICE, asked(None, width=100), drawn(drawing))


@pytest.mark.parametrize(
    ("line", "said"),
    [("score = 1.5", "score is 1.5"), ("score = 0.9\nnfe = 40.0", "nfe 40"),
     ("score = 0.9\nguidance = -1.0", "guidance -1"), ("score = 0.9\nsteps_ = 3", "steps_"),
     ("score = nan", "score is nan")],
)  # fmt: skip
def test_rows_that_cannot_be(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "cards.toml"
    path.write_text(f'[[picture]]\nmodel = "x"\nsteps = 20\n{line}\n', encoding="utf-8")
    with pytest.raises(RequestError, match=said):
        read_rows(path)


@pytest.mark.parametrize("text", ["", "[[model]]\nname = 'x'", "[[pictures]]\nmodel = 'x'"])
def test_a_table_without_rows_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cards.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RequestError, match=r"\[\[picture\]\]"):
        read_rows(path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "image", "ttft_budget_s": 1e-5}, "ttft_budget_s is of text"),
        ({"kind": "image", "context": 2048}, "context is of text"),
        ({"kind": "chat", "width": 64}, "width is of pictures"),
        ({"caption_tokens": 12}, "caption_tokens is of pictures"),
    ],
)
def test_what_a_kind_has_no_use_for_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        workload_of(values)


def test_the_verb_plans_pictures(edgert: Edgert, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "cards.toml"
    path.write_text(CARDS, encoding="utf-8")
    common = ("plan", "--device", "laptop-avx2", "--kind", "image")
    told = edgert(*common, "--total", "4")
    assert told.code == 0
    assert "s a step" in told.out
    other = tmp_path / "other.toml"
    other.write_text(CARDS.replace("edgert-draw", "edgert-drew"), encoding="utf-8")
    odd = edgert(*common, "--models", str(other))
    assert (odd.code, "'edgert-drew', expected one of ['edgert-draw']" in odd.err) == (2, True)
    bundle = str(image_bundle())
    found = edgert(*common, "--models", str(path), "--models", bundle, "--json")
    plan = json.loads(found.out)
    assert plan["choice"]["candidate"]["steps"] == 28
    assert plan["provenance"]["pictures"]["measured"] == ["edgert-draw"]
