"""Budgets: what they say, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgert.budget.limits import METRICS, Limit, budget_of, joined, read_budget, read_toml
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
        ({"p90_token_ms": {"512": 5, "0512": 900}}, "has two limits for 512 tokens, expected one"),
        ({"p90_token_ms": {512: 5, "512": 5}}, "has two limits for 512 tokens, expected one"),
        ({"p90_token_ms": 16**5000}, "a number of thousands of digits"),
        ({"p90_token_ms": {16**5000: 5}}, "a limit for 'a number of thousands of digits'"),
        ({"p90_token_ms": {"9" * 5000: 5}}, "expected a number of tokens"),
        ({16**5000: 5}, "'a number of thousands of digits' is no limit"),
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


def test_later_limits_go_before_those_of_their_name_and_tokens() -> None:
    file = budget_of({"p90_token_ms": {0: 40, 64: 50}, "peak_mb": 900})
    flags = budget_of({"p90_token_ms": 30, "load_s": 2})
    assert joined(file, flags) == (
        Limit("p90_token_ms", 30.0, 0), Limit("p90_token_ms", 50.0, 64), Limit("peak_mb", 900.0),
        Limit("load_s", 2.0),
    )  # fmt: skip


@pytest.mark.parametrize("where", ["a = {}", "a = [[1], [{{ b = {} }}]]", "[a.b]\nc = [{}]"])
@pytest.mark.parametrize("value", ["0x" + "f" * 5000, "9" * 5000, str(1 << 63)])
def test_integers_of_more_than_64_bits_are_no_toml(tmp_path: Path, where: str, value: str) -> None:
    path = tmp_path / "budget.toml"
    path.write_text(where.format(value), encoding="utf-8")
    with pytest.raises(RequestError, match="no TOML") as raised:
        read_toml(path, "workload")
    assert raised.value.code == "workload"
    path.write_text(f"a = {(1 << 63) - 1}\nb = {-(1 << 63)}", encoding="utf-8")
    assert len(read_toml(path, "workload")) == 2
