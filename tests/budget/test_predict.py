"""Predictions: what they say of a device elsewhere, and what they leave undecided."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from edgert.devices.load import load, to_toml

from edgert.budget.limits import budget_of, read_budget
from edgert.budget.run import Ask, run
from edgert.demo import demo_bundle, image_bundle
from edgert.errors import DeviceError, RequestError

from ..conftest import ROOT
from ..devices.test_profiles import measured
from ..tiny import tiny_bundle

ORIN = Ask(device="jetson-orin-nano-8gb", predict=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("predict") / "tiny.edge", quant="int4")


def test_a_board_elsewhere_is_predicted(bundle: Path, tmp_path: Path) -> None:
    limits = budget_of({"p50_token_ms": 1e3, "p90_ttft_ms": {64: 1e-3}, "peak_mb": 500,
                        "cold_start_s": 3})  # fmt: skip
    with pytest.raises(DeviceError, match="this machine is not jetson-orin-nano-8gb"):
        run(bundle, limits, Ask(device="jetson-orin-nano-8gb"))
    with pytest.raises(DeviceError, match="a prediction needs a device"):
        run(bundle, limits, Ask(predict=True))
    report = run(bundle, limits, Ask(device="jetson-orin-nano-8gb", predict=True))
    assert [v.outcome for v in report.verdicts] == ["pass", "fail", "pass", "pass"]
    assert {v.how for v in report.verdicts} == {"predicted"}
    token = report.verdicts[0]
    assert token.low
    assert token.high
    assert token.high / token.low == pytest.approx(np.exp(2 * 1.6449 * 0.35), rel=1e-3)
    path = tmp_path / "probed.toml"
    profile = msgspec.structs.replace(load("jetson-orin-nano-8gb"), measured=measured(2))
    path.write_text(to_toml(profile), encoding="utf-8")
    narrow = run(bundle, limits, Ask(device=str(path), predict=True)).verdicts[0]
    assert narrow.low
    assert narrow.high
    assert narrow.high / narrow.low == pytest.approx(np.exp(2 * 1.6449 * 0.1), rel=1e-3)


def test_a_drawing_elsewhere_is_predicted() -> None:
    limits = budget_of({"picture_s": 60, "peak_mb": 500, "load_s": 9, "cold_start_s": 1e-3,
                        "p50_token_ms": 10})  # fmt: skip
    report = run(image_bundle(), limits, Ask(device="raspberry-pi-5-8gb", predict=True))
    outcomes = {v.name: v.outcome for v in report.verdicts}
    assert outcomes == {
        "picture_s": "pass", "peak_mb": "pass", "load_s": "pass", "cold_start_s": "fail",
        "p50_token_ms": "undecided",
    }  # fmt: skip
    values = {v.name: v.value for v in report.verdicts}
    assert values["picture_s"]
    assert values["cold_start_s"]
    assert values["load_s"]
    assert values["load_s"] < values["cold_start_s"] < values["picture_s"]
    assert report.verdicts[-1].why == "of models that write, this one is of the kind image"


def test_nothing_is_predicted_past_the_context(bundle: Path) -> None:
    """As measuring finds it: 128 tokens, of which those that are timed take 17."""
    limits = budget_of({"p50_token_ms": {111: 1e4, 112: 1e4}, "p50_ttft_ms": {127: 1e4, 128: 1e4}})
    for ask in (ORIN, Ask(seconds=20)):
        found = run(bundle, limits, ask).verdicts
        assert [v.outcome for v in found] == ["pass", "undecided"] * 2
        assert found[1].why == "needs 129 tokens, the context holds 128"
        assert found[3].value is None


def test_a_budget_may_name_what_a_bundle_has_not(bundle: Path) -> None:
    limits = budget_of({"p50_token_ms": 1e4, "picture_s": 1e4, "watts": 1e4})
    for path, left in ((bundle, "picture_s"), (image_bundle(), "p50_token_ms")):
        found = {v.name: v for v in run(path, limits, Ask(seconds=4, threads=1)).verdicts}
        assert found[left].outcome == "undecided"
        assert "this one is of the kind" in found[left].why
        other = "p50_token_ms" if left == "picture_s" else "picture_s"
        assert found[other].value


def test_quantiles_are_not_the_median(bundle: Path) -> None:
    """The 90th percentile lies above it by what was measured, of the 99th nothing was."""
    names = [f"p{q}_{name}_ms" for name in ("token", "ttft") for q in (50, 90, 99)]
    limits = budget_of({name: {64: 1e3} for name in names})
    found = {v.name: v for v in run(bundle, limits, ORIN).verdicts}
    for name in ("token", "ttft"):
        p50, p90, p99 = (found[f"p{q}_{name}_ms"] for q in (50, 90, 99))
        assert (p50.outcome, p90.outcome, p99.outcome) == ("pass", "pass", "undecided")
        assert p50.value
        assert p90.value
        assert 1.02 * p50.value < p90.value < 1.5 * p50.value
        assert (p99.value, p99.low, p99.high) == (None, p50.low, None)
        assert "nothing that was measured says how far p99 lies above it" in p99.why


def test_a_tail_is_no_quicker_than_the_median(bundle: Path) -> None:
    (found,) = run(bundle, budget_of({"p99_token_ms": 1e-6}), ORIN).verdicts
    assert found.outcome == "fail"


@pytest.mark.parametrize(
    ("more", "said"),
    [({"limit_memory": 1 << 20}, "limit_memory say"), ({"save": True}, "save say"),
     ({"seconds": -1.0}, "seconds is -1.0"), ({"seconds": float("nan")}, "seconds is nan"),
     ({"kv_bits": 7}, "kv_bits is 7, expected one of")],
)  # fmt: skip
def test_what_a_prediction_has_no_use_for_is_refused(
    bundle: Path, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        run(bundle, budget_of({"peak_mb": 900}), msgspec.structs.replace(ORIN, **more))


def test_threads_are_those_of_the_device(bundle: Path) -> None:
    limits = budget_of({"p50_token_ms": 1e4})
    assert run(bundle, limits, msgspec.structs.replace(ORIN, threads=6)).outcome == "pass"
    for ask, said in (
        (msgspec.structs.replace(ORIN, threads=7), "the 6 cores that jetson-orin-nano-8gb has"),
        (Ask(seconds=1, threads=100_000), "cores that this machine has for this process"),
        (Ask(seconds=1, threads=0), "threads is 0, expected 1 to"),
    ):
        with pytest.raises(DeviceError, match=said) as raised:
            run(bundle, limits, ask)
        assert raised.value.code == "threads"


def test_the_budgets_of_the_documentation_are_kept(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n# (?:budget|drawing)\.toml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block, path in zip(blocks, (demo_bundle(), image_bundle()), strict=True):
        (tmp_path / "budget.toml").write_text(block, encoding="utf-8")
        found = run(path, read_budget(tmp_path / "budget.toml"), ORIN)
        assert {v.label: v.outcome for v in found.verdicts if v.outcome != "pass"} == {}
