"""Baselines: what is compared, what cannot be, and how files that are none are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from edgert.budget.baseline import check_comparable, compare
from edgert.budget.limits import budget_of
from edgert.budget.report import Report, Verdict, read_report
from edgert.budget.run import Ask, run
from edgert.errors import RequestError

from ..cli.conftest import Edgert, edgert  # noqa: F401
from ..tiny import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("baseline") / "tiny.edge", quant="int4")


def report_of(*values: float, name: str = "p50_token_ms", tokens: int | None = 0) -> Report:
    found = Verdict(name, 10.0, "ms", "pass", "measured", tokens, samples=values)
    return Report(1, "b", "here", (found,), 1.0)


def test_a_baseline_is_compared_by_bursts() -> None:
    rng = np.random.default_rng(0)
    draw = lambda scale: tuple(map(float, scale * np.exp(0.05 * rng.normal(size=24))))
    then = report_of(*draw(5.0))
    outcomes = [compare(report_of(*draw(x)).verdicts, then)[0].outcome for x in (4.0, 5.0, 6.5)]
    assert outcomes[0] == "pass"
    assert outcomes[1] != "fail"
    assert outcomes[2] == "fail"
    speeds = report_of(*(1 / x for x in draw(6.5)), name="tokens_per_s")
    slow = compare(speeds.verdicts, report_of(*(1 / x for x in draw(5.0)), name="tokens_per_s"))
    assert slow[0].outcome == "fail"
    assert slow[0].name == "tokens_per_s vs baseline"


def test_noise_is_no_regression() -> None:
    rng, failed = np.random.default_rng(1), 0
    for _ in range(200):
        a, b = (tuple(map(float, np.exp(0.4 * rng.standard_t(3, size=16)))) for _ in range(2))
        failed += compare(report_of(*a).verdicts, report_of(*b))[0].outcome == "fail"
    assert failed <= 4


@pytest.mark.parametrize("data", [b"", b"{}", b'{"schema": 9}', b"\xff", b"[" * 9999])
def test_what_is_no_report_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(data)
    with pytest.raises(RequestError, match="expected a report of `edgert test --json`"):
        read_report(path)


def saved(path: Path, report: Report) -> Path:
    path.write_text(json.dumps(report.to_dict()), encoding="utf-8")
    return path


def test_the_same_run_again_is_compared(
    edgert: Edgert,  # noqa: F811
    bundle: Path,
    tmp_path: Path,
) -> None:
    """Its bundle may lie elsewhere."""
    limits = ("--limit", "p50_token_ms=1e4", "--seconds", 20, "--json", "-t", 1)
    then = edgert("test", bundle, *limits, "--save").json
    assert then["conditions"]["provider"] == "cpu"
    assert then["conditions"]["kv_bits"] == 0
    quick = then["verdicts"][0]["samples"]
    then["verdicts"][0]["samples"] = [1e-3 * value for value in quick]
    then["bundle"] = "/elsewhere/tiny.edge"
    path = tmp_path / "then.json"
    path.write_text(json.dumps(then), encoding="utf-8")
    ran = edgert("test", bundle, *limits, "--baseline", path)
    assert (ran.code, ran.json["verdicts"][1]["name"]) == (1, "p50_token_ms vs baseline")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bundle": "other.edge"}, "of the bundle other.edge, this run of b"),
        ({"device": "steam-deck"}, "of the device steam-deck, this run of here"),
        ({"conditions": {"threads": 1}}, "its threads is 1, this run's 2"),
        ({"conditions": {"threads": 2, "kv_bits": 8}}, "its kv_bits is 8, this run's 0"),
        ({"conditions": {"threads": 2, "provider": "cuda"}}, "its provider is cuda"),
        ({"conditions": {"threads": 2, "limit_memory": 9}}, "its limit_memory is 9"),
        ({"verdicts": ()}, "it has measured none of the limits of this run"),
    ],
)
def test_a_baseline_of_something_else_is_refused(change: dict[str, Any], said: str) -> None:
    conditions = {"busy_cores": 0.4, "provider": "cpu", "kv_bits": 0, "threads": 2}
    limits = budget_of({"p50_token_ms": 4, "peak_mb": 9})
    then = replace(report_of(1.0), conditions={"busy_cores": 0.1, "threads": 2})
    check_comparable(then, "a/b", "here", conditions, limits)
    with pytest.raises(RequestError, match=said) as raised:
        check_comparable(replace(then, **change), "a/b", "here", conditions, limits)
    assert (raised.value.code, bool(raised.value.hint)) == ("baseline", True)


@pytest.mark.parametrize(
    ("name", "tokens", "how", "samples"),
    [("load_s", None, "measured", (1.0,)), ("p50_token_ms", 64, "measured", (1.0,)),
     ("p50_token_ms", 0, "predicted", (1.0,)), ("p50_token_ms", 0, "measured", ())],
)  # fmt: skip
def test_a_baseline_that_compares_nothing_is_refused(
    bundle: Path, name: str, tokens: int | None, how: Any, samples: tuple[float, ...]
) -> None:
    found = Verdict(name, 10.0, "ms", "pass", how, tokens, samples=samples)
    then = Report(1, str(bundle), "here", (found,), 1.0)
    with pytest.raises(RequestError, match="measured none of the limits"):
        run(bundle, budget_of({"p50_token_ms": 1e4}), Ask(seconds=1, baseline=then))


def test_a_prediction_has_no_baseline(bundle: Path) -> None:
    ask = Ask(device="steam-deck", predict=True, baseline=report_of(1.0))
    with pytest.raises(RequestError, match="compared with no baseline") as raised:
        run(bundle, budget_of({"p50_token_ms": 1e4}), ask)
    assert raised.value.code == "baseline"


@pytest.mark.parametrize("samples", [(), (1.0, 0.0)])
def test_what_this_run_has_not_measured_is_undecided(samples: tuple[float, ...]) -> None:
    (found,) = compare(report_of(*samples).verdicts, report_of(1.0, 1.1, 0.9))
    assert (found.outcome, found.why) == ("undecided", "this run has not measured it")


@pytest.mark.parametrize("value", ["0", "-1", "1e308", "5e-324", "1e-300"])
def test_samples_whose_ratio_is_none_are_refused(
    edgert: Edgert,  # noqa: F811
    bundle: Path,
    tmp_path: Path,
    value: str,
) -> None:
    path = saved(tmp_path / "then.json", replace(report_of(1.25), bundle=str(bundle)))
    path.write_text(path.read_text(encoding="utf-8").replace("1.25", value), encoding="utf-8")
    with pytest.raises(RequestError, match="a sample of p50_token_ms at 0 is"):
        read_report(path)
    ran = edgert("test", bundle, "--limit", "p50_token_ms=1e4", "--baseline", path, "--json")
    assert (ran.code, ran.json["error"]["code"]) == (2, "baseline")


def test_more_samples_than_a_report_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="201 samples of p50_token_ms at 0, at most 200"):
        read_report(saved(tmp_path / "then.json", report_of(*[1.0] * 201)))
