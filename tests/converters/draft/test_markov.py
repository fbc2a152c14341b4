"""The benchmark that shows LK beating KL, on one chain and in fewer steps."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from benchmarks import lk_markov  # noqa: E402

NAMES = ("KL", "LK-lambda, eta 3")


def test_10_4_lk_gives_more_tokens_a_step_at_a_larger_kl() -> None:
    rows = {1: lk_markov.compared(1, NAMES, steps=400)}
    assert lk_markov.holds(rows)
    kl, lk = (rows[1][name] for name in NAMES)
    assert lk.alpha > kl.alpha
    assert 1.5 < kl.tau < lk.tau < 8
    text = lk_markov.table(rows)
    assert f"{100 * (lk.tau / kl.tau - 1):+.1f} %" in text


def test_a_loss_that_is_no_better_does_not_hold() -> None:
    same = lk_markov.Found(0.5, 1.0, 2.0)
    assert not lk_markov.holds({0: dict.fromkeys(NAMES, same)})
