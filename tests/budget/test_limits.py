"""Budgets: what they say, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgert.budget.limits import METRICS, Limit, budget_of, read_budget
from edgert.errors import RequestError


def test_numbers_and_tables(tmp_path: Path) -> None:
    path = tmp_path / "budget.toml"
    path.write_text("p90_token_ms = 40\npeak_mb = 900.5\np50_ttft_ms = { 128 = 10, 512 = 20 }\n")
    assert read_budget(path) == (
        Limit("p90_token_ms", 40.0, 0),
        Limit("peak_mb", 900.5),
        Limit("p50_ttft_ms", 10.0, 128),
        Limit("p50_ttft_ms", 20.0, 512),
    )


def test_every_metric_has_a_way_to_be_kept() -> None:
    for name, metric in METRICS.items():
        limit = Limit(name, 10.0, metric.tokens)
        assert limit.kept(11.0) == metric.least
        assert limit.kept(9.0) != metric.least


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "it holds no limits"),
        ({"p90_tokn_ms": 4}, "did you mean 'p90_token_ms'"),
        ({"p90_token_ms": -1}, "p90_token_ms is '-1', expected a number above 0"),
        ({"p90_token_ms": True}, "expected a number above 0"),
        ({"p90_token_ms": float("nan")}, "expected a number above 0"),
        ({"p90_token_ms": "40"}, "expected a number above 0"),
        ({"p90_token_ms": {"-1": 4}}, "a limit for '-1', expected a number of tokens"),
        ({"p90_token_ms": {"9" * 30: 4}}, "expected a number of tokens"),
        ({"p90_ttft_ms": {"0": 4}}, "a limit for '0', expected a number of tokens"),
        ({"p90_ttft_ms": {"5": "x"}}, "p90_ttft_ms at 5 is 'x'"),
        ({"peak_mb": {"5": 1}}, "peak_mb has no number of tokens"),
    ],
)
def test_what_is_wrong_is_said(asked: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said) as raised:
        budget_of(asked)
    assert raised.value.code == "budget"


@pytest.mark.parametrize("data", [b"\xff", b"a = [", b"x" * ((1 << 20) + 1)])
def test_files_that_are_no_budget(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "budget.toml"
    path.write_bytes(data)
    with pytest.raises(RequestError, match="no TOML"):
        read_budget(path)
    with pytest.raises(RequestError, match="expected a TOML file"):
        read_budget(tmp_path / "absent.toml")
