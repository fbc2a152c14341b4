"""What `benchmarks/optimizers.py` claims about the papers' small reproductions, at test size."""

from __future__ import annotations

import pytest
import torch

from benchmarks import optimizers as bench


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def dash(**options):
    return lambda params, lr: bench.optim.Dash(params, lr, block=16, **options)


def adamw(params, lr):
    return torch.optim.AdamW(params, lr, betas=(0.9, 0.95), weight_decay=0)


def test_preconditioning_beats_adamw_on_an_ill_conditioned_quadratic():
    """R1: at most 0.35 of AdamW's loss for every solver, and fresh roots are no worse than old."""
    plain = min(bench.quadratic(adamw, lr, 0) for lr in (0.1, 0.3, 1.0))
    assert 1e-3 < plain < 3e-3
    fresh = bench.quadratic(dash(solver="evd", freq=1), 1.0, 0)
    assert fresh <= 0.35 * plain
    for solver in ("ndb", "cn"):
        assert bench.quadratic(dash(solver=solver, freq=1, newton_steps=10), 1.0, 0) <= 0.35 * plain
    assert fresh <= bench.quadratic(dash(solver="evd", freq=100), 1.0, 0)


def test_products_of_aligned_matrices_grow_until_msign_acts():
    """R3: growth with alignment and with falling stable rank; norm one after MSign."""
    aligned = [bench.chains(a, 4, draws=3) for a in (0.0, 0.3, 0.6, 0.9)]
    middles = [middle for _, middle, _, _ in aligned]
    assert middles == sorted(middles)
    assert middles[-1] > 1e5 * middles[0]
    ranked = [bench.chains(0.6, srank, draws=3) for srank in (8, 4, 2)]
    middles = [middle for _, middle, _, _ in ranked]
    assert middles == sorted(middles)
    assert all(after == pytest.approx(1, abs=1e-6) for *_, after in aligned + ranked)


@pytest.mark.slow
def test_one_batched_call_beats_a_call_per_matrix():
    """R2, by time: at least three times at k = 32, on a quiet machine."""
    batched, looped, _ = bench.batching(64, 32)
    assert looped >= 3 * batched


@pytest.mark.slow
def test_stable_rank_falls_in_training_and_msign_restores_it():
    """R4: W_O of the first three layers; nothing is claimed about the loss."""
    plain, _ = bench.small_run(None, steps=250)
    restored, _ = bench.small_run(50, steps=250)
    assert plain[0] == pytest.approx(8, abs=1.5)
    assert plain[250] < 0.6 * plain[0]
    assert [restored[step] for step in (50, 250)] == pytest.approx([32, 32], rel=1e-2)
