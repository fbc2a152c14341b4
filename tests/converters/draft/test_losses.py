"""Section 10.3 of the specification: what the losses of draft heads are."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from edgert.converters.draft import losses  # noqa: E402
from edgert.converters.draft.losses import LOSSES, Loss, Target, loss_of, target  # noqa: E402

V = 40


def laws(seed: int, rows: int = 1, drafted: int = V) -> tuple[torch.Tensor, Target]:
    """Draft logits [rows, drafted] and a target of float64."""
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, drafted, generator=random, dtype=torch.float64)
    model = 2 * torch.randn(rows, V, generator=random, dtype=torch.float64)
    ids = torch.arange(drafted)
    found = target(model, ids, torch.ones(rows, dtype=torch.float64))
    return z, Target(found.part, torch.ones(rows, dtype=torch.float64))


def gradient(z: torch.Tensor, wanted: Target, kind: Loss, eta: float = 3.0) -> torch.Tensor:
    leaf = z.clone().requires_grad_()
    loss_of(leaf, wanted, kind, eta=eta).loss.backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("drafted", [V, 25])
def test_10_3_gradients_are_the_central_differences(kind: Loss, drafted: int) -> None:
    """l of the hybrid stands still: it is computed at z, and carries no gradient."""
    z, wanted = laws(1, rows=1, drafted=drafted)
    found, step = gradient(z, wanted, kind), 1e-6
    q, p = z.softmax(-1), wanted.part.exp()
    alpha = torch.minimum(p, q).sum()
    share = torch.exp(-3.0 * alpha)
    assert float((q - p).abs().min()) > 1e-5, "a tie is too near for differences"

    def value(at: torch.Tensor) -> float:
        one = loss_of(at, wanted, "kl").loss, loss_of(at, wanted, "tv").loss
        if kind == "lambda":
            return float(share * one[0] + (1 - share) * one[1])
        return float(loss_of(at, wanted, kind).loss)

    wanted_gradient = torch.empty_like(z)
    for index in range(drafted):
        moved = [z.clone(), z.clone()]
        for sign, at in zip((1, -1), moved, strict=True):
            at[0, index] += sign * step
        wanted_gradient[0, index] = (value(moved[0]) - value(moved[1])) / (2 * step)
    error = (found - wanted_gradient).norm() / wanted_gradient.norm()
    assert float(error) < 1e-7


def test_10_3_closed_forms_of_the_gradients() -> None:
    z, wanted = laws(2)
    q, p = z.softmax(-1), wanted.part.exp()
    sign = torch.sign(q - p)
    tv = 0.5 * q * (sign - (q * sign).sum())
    alpha = torch.minimum(p, q).sum()
    share = torch.exp(-3.0 * alpha)
    both = share * (q - p) + (1 - share) * tv
    forms: dict[Loss, torch.Tensor] = {"kl": q - p, "tv": tv, "alpha": tv / alpha, "lambda": both}
    for kind, form in forms.items():
        assert torch.allclose(gradient(z, wanted, kind), form, rtol=1e-9, atol=1e-12)


def test_10_3_limits() -> None:
    z, wanted = laws(3)
    assert torch.equal(gradient(z, wanted, "lambda", eta=1e-30), gradient(z, wanted, "kl"))
    sure = torch.full((1, V), -1e9, dtype=torch.float64)
    sure[0, 7] = 0.0
    one_hot = Target(sure.log_softmax(-1), torch.ones(1, dtype=torch.float64))
    nll = -z.log_softmax(-1)[0, 7]
    assert math.isclose(float(loss_of(z, one_hot, "alpha").loss), float(nll), rel_tol=1e-12)


def test_10_3_pure_tv_does_not_start() -> None:
    """Norms of the gradients at uniform q and p uniform on k tokens, V and k as published."""
    small, large = (0.316, 9.9e-5, 0.316), (0.224, 3.5e-5, 0.224)
    for size, k, expected in ((32000, 10, small), (128000, 20, large)):
        z = torch.zeros(1, size, dtype=torch.float64)
        part = torch.full((1, size), -1e9, dtype=torch.float64)
        part[0, :k] = -math.log(k)
        wanted = Target(part, torch.ones(1, dtype=torch.float64))
        found = [float(gradient(z, wanted, kind).norm()) for kind in ("kl", "tv", "alpha")]
        assert found == pytest.approx(expected, rel=0.02)


def test_10_3_what_lies_outside_the_vocabulary() -> None:
    """It lowers alpha and is no matter to the law that KL compares with."""
    random = torch.Generator().manual_seed(4)
    model = torch.randn(3, V, generator=random, dtype=torch.float64)
    z, ids = torch.randn(3, 25, generator=random, dtype=torch.float64), torch.arange(25)
    more = model.clone()
    more[:, 25:] += 2.0
    ones = torch.ones(3, dtype=torch.float64)
    before, after = target(model, ids, ones), target(more, ids, ones)
    every = ones
    first, second = (loss_of(z, Target(x.part, every), "kl") for x in (before, after))
    assert torch.allclose(first.kl, second.kl, rtol=1e-12)
    assert float(second.alpha) < float(first.alpha)
    assert float(second.most) < float(first.most)
    likeliest = more.argmax(-1)
    assert torch.equal(after.counts, (likeliest < 25).double()), "others do not count"
    assert 0 < float(after.counts.sum()) < 3 or float(before.counts.sum()) > 0


def test_the_share_of_kl_is_one_of_all_ranks_and_no_gradient() -> None:
    z, wanted = laws(5, rows=6)
    whole = gradient(z, wanted, "lambda")
    halves = [slice(0, 2), slice(2, 6)]
    parts = [Target(wanted.part[half], wanted.counts[half]) for half in halves]
    sums = [
        torch.stack([getattr(loss_of(z[half], part, "kl"), name)
                     for name in ("alpha", "most", "kl", "number")])
        for half, part in zip(halves, parts, strict=True)
    ]  # fmt: skip
    for half, part in zip(halves, parts, strict=True):
        leaf = z[half].clone().requires_grad_()
        loss_of(leaf, part, "lambda", together=lambda own: sums[0] + sums[1]).loss.backward()
        assert leaf.grad is not None
        assert torch.allclose(leaf.grad, whole[half], rtol=1e-12)


def test_places_weigh_less_and_less() -> None:
    assert [losses.decayed(place) for place in range(3)] == pytest.approx([1.0, 0.8, 0.64])
