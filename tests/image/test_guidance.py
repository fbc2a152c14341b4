"""Guidance of two branches."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgert.errors import RequestError
from edgert.image.denoiser import Denoiser
from edgert.image.guidance import Guidance
from edgert.image.loop import sample
from tests.image.networks import Counted, flow_sampler, latents

A, B = np.random.default_rng(0).standard_normal((2, 3, 4, 5, 5)).astype(np.float32)


def test_the_formula() -> None:
    got = Guidance(scale=3.0).combine({"cond": A, "uncond": B})
    np.testing.assert_allclose(got, B + 3 * (A - B), rtol=1e-6)
    assert got.dtype == np.float32
    swapped = Guidance(scale=3.0).combine({"cond": B, "uncond": A})
    assert np.abs(got - swapped).max() > 0.1


def test_a_scale_of_one_runs_the_conditional_branch_alone() -> None:
    network = Counted()
    sample(network.model, flow_sampler(9), latents(), guidance=Guidance(scale=1.0))
    assert {branch for branch, _ in network.bodies} == {"cond"}
    assert Guidance(scale=1.0).combine({"cond": A}) is A


def test_branches_run_in_the_callers_order() -> None:
    for order in (("cond", "uncond"), ("uncond", "cond")):
        network = Counted()
        model = Denoiser(embed=network.embed, body=network.body, head=network.head, branches=order)
        sample(model, flow_sampler(9), latents(), guidance=Guidance(scale=2.0))
        assert tuple(branch for branch, _ in network.bodies[:2]) == order


def test_rescale_brings_the_spread_of_the_conditional_output_back() -> None:
    guided = Guidance(scale=7.5).combine({"cond": A, "uncond": B})
    whole = Guidance(scale=7.5, rescale=1.0).combine({"cond": A, "uncond": B})
    spread = lambda z: z.std(axis=(1, 2, 3))
    np.testing.assert_allclose(spread(whole), spread(A), rtol=1e-5)
    half = Guidance(scale=7.5, rescale=0.5).combine({"cond": A, "uncond": B})
    np.testing.assert_allclose(half, (guided + whole) / 2, rtol=1e-4, atol=1e-5)
    assert half.dtype == np.float32


def test_only_the_first_channels_are_kept() -> None:
    """DiT and PixArt predict a variance in the second half."""
    double = Denoiser(full=lambda x, at: np.concatenate([x, np.full_like(x, np.nan)], axis=1))
    sampler = flow_sampler(9)
    got = sample(double, sampler, latents(), guidance=Guidance(scale=2.0, channels=3))
    alone = Denoiser(full=lambda x, at: x)
    np.testing.assert_array_equal(got.x, sample(alone, sampler, latents()).x)


@pytest.mark.parametrize("settings", [{"scale": math.nan}, {"scale": -1}, {"rescale": 2}])
def test_guidance_out_of_range_is_an_error(settings: dict[str, float]) -> None:
    with pytest.raises(RequestError, match="guidance"):
        Guidance(**settings)  # type: ignore[arg-type]
