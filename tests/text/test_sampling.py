"""Sampling: transformers' laws, exact draws, no masked ids, parameters in their ranges.

The whole chain and its newer members are in test_sampling_chain.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.errors import DeviceError, RequestError
from edgert.text.params import Resolved, SamplingParams
from edgert.text.sampling import Sampler, below, draw, largest, process, uniforms


def params(**given: Any) -> Resolved:
    return SamplingParams.of(**({"seed": 0} | given)).checked(1 << 30).resolved({})


def dense(size: int, law: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    out = np.zeros(size)
    out[law[0]] = law[1]
    return out


def transformers_law(z: np.ndarray, history: list[int], p: Resolved) -> np.ndarray:
    """The same parameters through transformers' own processors, float32."""
    import torch
    from transformers.generation import logits_process as hf

    torch.set_num_threads(1)
    ids, scores = torch.tensor([history]), torch.tensor(z)[None].clone()
    for token, bias in p.logit_bias.items():
        scores[0, token] += bias
    if p.repeat_penalty != 1.0:
        scores = hf.RepetitionPenaltyLogitsProcessor(p.repeat_penalty)(ids, scores)
    counts = torch.bincount(ids[0], minlength=len(z))
    scores = scores - p.presence_penalty * (counts > 0) - p.frequency_penalty * counts
    scores = hf.TemperatureLogitsWarper(p.temperature)(ids, scores)
    if p.top_k:
        scores = hf.TopKLogitsWarper(p.top_k)(ids, scores)
    if p.top_p < 1.0:
        scores = hf.TopPLogitsWarper(p.top_p)(ids, scores)
    if p.min_p > 0.0:
        scores = hf.MinPLogitsWarper(p.min_p)(ids, scores)
    if p.typical_p < 1.0:
        scores = hf.TypicalLogitsWarper(p.typical_p)(ids, scores)
    return torch.softmax(scores[0].double(), -1).numpy()


CASES: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 1.7, "top_k": 40},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.9999},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.5, "top_k": 50, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 1.0, "top_k": 5000},
    {"temperature": 0.9, "typical_p": 0.8},
    {"temperature": 1.3, "typical_p": 0.3, "top_k": 100},
    {"temperature": 0.7, "repeat_penalty": 1.3, "top_k": 20},
    {"temperature": 0.7, "repeat_penalty": 0.8, "presence_penalty": 1.5},
    {"temperature": 1.0, "frequency_penalty": 0.4, "presence_penalty": -0.5, "top_p": 0.95},
    {"temperature": 1.0, "logit_bias": {3: 5.0, 7: -100.0}, "top_k": 10},
]


@pytest.mark.parametrize("size", [7, 1000, 50_000])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_laws_equal_transformers(case: dict[str, Any], size: int) -> None:
    """In transformers' order: with the temperature in front of top-k and the others."""
    if case.get("logit_bias") and size < 8:
        case = case | {"logit_bias": {3: 5.0, 6: -100.0}}
    rng = np.random.default_rng(size)
    case = case | ({"top_k": min(case["top_k"], size)} if "top_k" in case else {})
    p = params(**case, temperature_last=False)
    for scale in (0.5, 4.0):
        z = (scale * rng.standard_normal(size)).astype(np.float32)
        history = [int(t) for t in rng.integers(0, size, 30)]
        ours, theirs = dense(size, process(z, p, history)), transformers_law(z, history, p)
        # A token on the very edge of top-p may fall either way in float32.
        edge = np.flatnonzero((ours > 1e-9) != (theirs > 1e-9))
        assert len(edge) <= (p.top_p < 1.0 or p.typical_p < 1.0)
        assert np.abs(ours - theirs).sum() < 1e-4 + 2 * theirs[edge].sum() + 2 * ours[edge].sum()


def test_greedy_ties_go_to_the_lower_id() -> None:
    z = np.array([0, 3, 1, 3, 3], np.float32)
    for p in (params(temperature=0), params(temperature=1.0, top_k=1), params()):
        assert Sampler(p).pick(z, [1]) == 1


def test_top_k_ties_go_to_the_lower_ids() -> None:
    z = np.zeros(1000, np.float32)
    ids, probs = process(z, params(temperature=1.0, top_k=3))
    assert ids.tolist() == [0, 1, 2]
    np.testing.assert_allclose(probs, 1 / 3)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_largest_is_a_stable_sort(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 3000))
    levels = data.draw(st.integers(1, 50))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    z = (rng.integers(-levels, levels, size) * rng.choice([-0.0, 1.5])).astype(np.float32)
    count = data.draw(st.integers(1, size))
    expected = np.argsort(-z, kind="stable")[:count]
    np.testing.assert_array_equal(largest(z, count), expected)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_never_a_masked_or_truncated_id(data: st.DataObject) -> None:
    size = data.draw(st.integers(4, 300))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    z = (3 * rng.standard_normal(size + 20)).astype(np.float32)
    holes = sorted({int(t) for t in rng.integers(0, size, size // 3)})[: size - 1]
    options: dict[str, Any] = {
        "temperature": data.draw(st.sampled_from([0.0, 0.2, 1.0, 5.0])),
        "top_k": data.draw(st.integers(0, size + 5)),
        "top_p": data.draw(st.sampled_from([0.01, 0.5, 1.0])),
        "min_p": data.draw(st.sampled_from([0.0, 0.1, 1.0])),
        "repeat_penalty": data.draw(st.sampled_from([1.0, 1.5])),
        "typical_p": data.draw(st.sampled_from([0.2, 0.9, 1.0])),
        "xtc_probability": data.draw(st.sampled_from([0.0, 0.5, 1.0])),
        "xtc_threshold": data.draw(st.sampled_from([0.0, 0.1])),
        "dynatemp_range": data.draw(st.sampled_from([0.0, 0.7])),
        "temperature_last": data.draw(st.booleans()),
        "dry_multiplier": data.draw(st.sampled_from([0.0, 0.8])),
    }
    p = params(**options, seed=data.draw(st.integers(0, 2**64 - 1)))
    history = [int(t) for t in rng.integers(0, size, 9)]
    ids, probs = process(z, p, history, allowed=size, holes=holes)
    token = draw(ids, probs, p.seed, 9)
    assert token in ids
    assert 0 <= token < size
    assert token not in holes
    assert np.isclose(probs.sum(), 1.0)
    assert len(set(ids.tolist())) == len(ids)
    if 0 < options["top_k"]:
        assert len(ids) <= options["top_k"]


@pytest.mark.parametrize("size", [12, 6000])
def test_draws_follow_the_law(size: int) -> None:
    """Chi-square over 20 000 positions; 6000 ids take the pruned race."""
    rng = np.random.default_rng(5)
    probs = rng.dirichlet(np.full(size, 0.02 if size > 100 else 1.0))
    ids = rng.permutation(size * 2)[:size]
    count = 20_000 if size < 100 else 4000
    drawn = np.array([draw(ids, probs, 77, position) for position in range(count)])
    heavy = np.flatnonzero(probs * count > 5)
    found = np.array([(drawn == ids[i]).sum() for i in heavy])
    expected = probs[heavy] * count
    chi = float(((found - expected) ** 2 / expected).sum())
    freedom = len(heavy)
    assert chi < freedom + 4 * np.sqrt(2 * freedom)  # about p = 1e-4


def test_pruning_changes_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    ids, probs = np.arange(9000), rng.dirichlet(np.full(9000, 0.1))
    pruned = [draw(ids, probs, 3, position) for position in range(50)]
    monkeypatch.setattr("edgert.text.sampling.RACE_DIRECT", 10**9)
    assert pruned == [draw(ids, probs, 3, position) for position in range(50)]


@pytest.mark.parametrize("spread", [0.0, 0.7])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_a_draw_from_everything_needs_no_law(scale: float, spread: float) -> None:
    """The short cut of whole vocabularies takes the token that process and draw take."""
    p = params(temperature=0.7, dynatemp_range=spread, seed=9)
    z = (scale * np.random.default_rng(1).standard_normal(9001)).astype(np.float32)
    sampler = Sampler(p)
    for position in range(60):
        expected = draw(*process(z, p, [0] * position), 9, position)
        assert sampler.pick(z, [0] * position) == expected


def test_numbers_below_a_limit() -> None:
    ids = np.random.default_rng(2).permutation(30_000)
    for limit in (1e-4, 0.3, 1.0, 7.0):
        wanted = np.flatnonzero(uniforms(5, 6, ids) <= limit)
        found = below(5, 6, ids, limit)
        assert set(wanted) <= set(found.tolist())
        assert len(found) <= len(wanted) + 1
        assert below(5, 6, range(30_000), limit).tolist() == sorted(ids[found].tolist())


def test_a_sampler_reads_each_row_afresh() -> None:
    rng = np.random.default_rng(3)
    p = params(temperature=0.9, seed=4, repeat_penalty=1.2, top_k=5)
    sampler, history = Sampler(p, holes=[3]), [1, 2]
    for _ in range(30):
        z = rng.standard_normal(400).astype(np.float32)
        before = z.copy()
        token = sampler.pick(z, history)
        np.testing.assert_array_equal(z, before)
        assert token == draw(*process(z, p, history, holes=[3]), 4, len(history))
        history = [*history, token]


@pytest.mark.parametrize(
    "asked",
    [
        {}, {"temperature": 0.0}, {"top_k": 20, "temperature": 0.7}, {"top_p": 0.9},
        {"min_p": 0.05}, {"typical_p": 0.8}, {"repeat_penalty": 1.3, "presence_penalty": 0.4},
        {"logit_bias": {3: 4.0, 40: -90.0, 41: 5.0}}, {"dynatemp_range": 0.6},
        {"xtc_probability": 0.6, "xtc_threshold": 0.05},
    ],
)  # fmt: skip
@pytest.mark.parametrize(("size", "few"), [(300, 90), (9000, 5000)])
def test_rows_of_few_ids_are_whole_rows_with_nothing_else(
    asked: dict[str, Any], size: int, few: int
) -> None:
    """Ids past the tokenizer's, and holes, are not drawn from either."""
    rng = np.random.default_rng(few)
    names = np.sort(rng.permutation(size)[:few])
    one = params(**asked)
    for limits in (
        {"allowed": size},
        {"allowed": size - 9, "holes": [int(names[2]), int(names[3]) + 1]},
    ):
        some, every = Sampler(one, names=names, **limits), Sampler(one, **limits)  # type: ignore
        for turn in range(6):
            z = np.full(size, -np.inf, np.float32)
            z[names] = rng.standard_normal(few).astype(np.float32) * (1 + 2 * turn)
            history = rng.integers(0, size - 9, 12 + turn).tolist()
            assert some.pick(z[names], history) == every.pick(z, history)
            (ids, probs), whole = some.law(z[names], history), dense(size, every.law(z, history))
            np.testing.assert_allclose(dense(size, (ids, probs)), whole, rtol=1e-5, atol=1e-9)


def test_draws_depend_on_seed_position_and_id_alone() -> None:
    ids = np.arange(500)
    whole = uniforms(9, 4, ids)
    np.testing.assert_array_equal(uniforms(9, 4, ids[::-7]), whole[::-7])
    assert not np.any(whole == uniforms(9, 5, ids))
    assert not np.any(whole == uniforms(10, 4, ids))
    assert whole.min() > 0.0
    assert whole.max() < 1.0


def test_logits_that_are_no_numbers() -> None:
    z = np.zeros(100, np.float32)
    z[3] = np.nan
    for p in (params(temperature=0), params(temperature=1.0, top_k=5)):
        with pytest.raises(DeviceError, match="logit of nan"):
            process(z, p)
    with pytest.raises(RequestError, match="every token is masked"):
        process(np.full(10, -np.inf, np.float32), params(temperature=1.0))
    with pytest.raises(RequestError, match="every token is masked"):
        process(np.zeros(10, np.float32), params(), holes=range(10))


def test_logits_are_left_alone() -> None:
    z = np.arange(50, dtype=np.float32)
    before = z.copy()
    process(z, params(temperature=1.0, logit_bias={1: 2.0}, repeat_penalty=2.0), [4, 5], holes=[7])
    np.testing.assert_array_equal(z, before)


def test_defaults_follow_the_bundle() -> None:
    asked = SamplingParams.of
    assert asked().resolved({}).greedy
    advice = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.1}
    got = asked(top_k=5).resolved(advice)
    assert (got.temperature, got.top_p, got.top_k, got.repeat_penalty) == (0.6, 0.95, 5, 1.1)
    assert asked().resolved(advice | {"do_sample": 0}).greedy
    assert asked(temperature=0).resolved(advice).greedy
    assert asked(top_p=0.5).resolved({}).temperature == 1.0
    assert asked(seed=5).resolved({}).seed == 5
    assert asked().resolved({}).seed != asked().resolved({}).seed
    assert asked(stop="x").stop == ("x",)
    assert asked(temperature=np.float32(0.5), top_k=np.int64(3)).top_k == 3
