"""Gradients of linear attention on torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from edgert.converters import torch_linear
from edgert.converters.torch_linear import linear_attention
from edgert.converters.torch_packed import documents_of, packed
from torch import Tensor

HEADS, GROUPS, SIZE = 4, 2, 8
WIDTH = (HEADS + 2 * GROUPS) * SIZE
MODES = ("square", "shifted", "mamba2s", "2mamba-e")
CHUNK = 2  # of windows


def attrs_of(mode: str, eps: float = 0.0, *, window: bool = False) -> dict[str, Any]:
    return {
        "heads": HEADS, "kv_heads": GROUPS, "head_dim": SIZE, "features": SIZE, "mode": mode,
        "scale": SIZE**-0.5, "decay": True, "eps": eps, "qk_eps": 1e-6,
        "window": window, "chunk": CHUNK,
    }  # fmt: skip


def given(count: int, seed: int, mode: str, *, window: bool = False) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    gates = GROUPS * (1 + (mode == "mamba2s"))
    shapes = {"qkv": (1, count, WIDTH), "gates": (1, count, gates)}
    if mode == "shifted":
        shapes |= {"beta": (GROUPS,), "gamma": (GROUPS,)}  # type: ignore[dict-item]
    if window:
        shapes["log_window"] = (HEADS,)  # type: ignore[assignment]
    return {
        name: torch.from_numpy(rng.standard_normal(shape)).requires_grad_()
        for name, shape in shapes.items()
    }


def computed(x: dict[str, Tensor], mode: str, **more: Any) -> Tensor:
    weights = {name: x[name] for name in ("beta", "gamma", "log_window") if name in x}
    turn = lambda part: part.transpose(1, 2)
    attrs = attrs_of(mode, window="log_window" in x)
    return linear_attention((x["qkv"], x["gates"]), weights, attrs, turn, **more)


@pytest.fixture(autouse=True)
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in float64, so that differences of gradients are seen."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


def by_hand(x: dict[str, Tensor], mode: str, gradient: Tensor) -> dict[str, Tensor]:
    """The gradients of specification 4.4, for query, key and value heads that are as many."""
    count, scale = x["qkv"].shape[1], SIZE**-0.5
    rows = x["qkv"].detach()[0].view(count, HEADS + 2 * GROUPS, SIZE)
    q, k, v = (part.transpose(0, 1) for part in rows.split([HEADS, GROUPS, GROUPS], 1))
    share = HEADS // GROUPS
    k, v = k.repeat_interleave(share, 0), v.repeat_interleave(share, 0)
    gates = x["gates"].detach()[0].T
    c = -torch.nn.functional.softplus(gates).cumsum(-1).repeat_interleave(share, 0)
    fade = (c[:, :, None] - c[:, None, :]).masked_fill(
        ~torch.ones(count, count).bool().tril(), -1e9
    )
    fade = fade.exp()
    score = scale * q @ k.transpose(1, 2)
    beta = gamma = torch.zeros(HEADS, 1, 1, dtype=torch.float64)
    if mode == "shifted":
        soft = (torch.nn.functional.softplus(x[n].detach()) for n in ("beta", "gamma"))
        beta, gamma = (p.repeat_interleave(share)[:, None, None] for p in soft)
        gamma = gamma + 1e-3
    w = ((score + beta) ** 2 + gamma) * fade
    n = w.sum(-1, keepdim=True)
    p, o = w / n, w @ v / n
    do = gradient[0].view(count, HEADS, SIZE).transpose(0, 1)
    gm = do @ v.transpose(1, 2) - (o * do).sum(-1, keepdim=True)
    dx = gm / n * 2 * (score + beta) * fade
    dc = (p * gm).sum(-1) - (p * gm).sum(-2)
    drate = dc.flip(-1).cumsum(-1).flip(-1).view(GROUPS, share, count).sum(1)
    found = {
        "q": scale * dx @ k, "k": (scale * dx.transpose(1, 2) @ q), "v": p.transpose(1, 2) @ do,
        "gates": (-drate * gates.sigmoid()).T[None], "beta": dx.sum((1, 2)),
        "gamma": (gm / n * fade).sum((1, 2)),
    }  # fmt: skip
    groups = (found[name].view(GROUPS, share, count, SIZE).sum(1) for name in "kv")
    rows = torch.cat([found["q"], *groups]).transpose(0, 1).reshape(1, count, WIDTH)
    made = {"qkv": rows, "gates": found["gates"]}
    if mode == "shifted":
        for name in ("beta", "gamma"):
            made[name] = found[name].view(GROUPS, share).sum(1) * x[name].detach().sigmoid()
    return made


@pytest.mark.parametrize("mode", ["square", "shifted"])
def test_oracle_6_gradients_are_those_of_the_formulas(mode: str) -> None:
    x = given(60, 1, mode)
    y = computed(x, mode)
    gradient = torch.from_numpy(np.random.default_rng(2).standard_normal(y.shape))
    y.backward(gradient)  # type: ignore[no-untyped-call]
    for name, wanted in by_hand(x, mode, gradient).items():
        found = x[name].grad
        assert found is not None
        assert (found - wanted).abs().max() < 1e-9 * max(1.0, float(wanted.abs().max())), name


@pytest.mark.parametrize("mode", MODES)
def test_oracle_6_gradients_are_those_of_differences(mode: str) -> None:
    x = given(12, 3, mode)
    names = list(x)
    assert torch.autograd.gradcheck(
        lambda *parts: computed(dict(zip(names, parts, strict=True)), mode), tuple(x.values())
    )


def test_blocks_of_rows_are_one_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x = given(50, 4, "shifted")
    whole = computed(x, "shifted")
    monkeypatch.setattr(torch_linear, "ROWS", 7)
    assert (computed(x, "shifted") - whole).abs().max() < 1e-12


def test_oracle_6_gradients_with_a_window_and_documents() -> None:
    x = given(9, 5, "shifted", window=True)
    own = packed(torch.tensor([[0] * 3 + [1] * 6]))
    names = list(x)

    def rows(*parts: Tensor) -> Tensor:
        return computed(dict(zip(names, parts, strict=True)), "shifted", packed=own)

    assert torch.autograd.gradcheck(rows, tuple(x.values()))


@pytest.mark.parametrize(
    ("mode", "window"),
    [*((mode, False) for mode in MODES), ("square", True), ("shifted", True)],
)
def test_oracle_7_packed_documents_are_those_apart(
    mode: str, window: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = given(50, 6, mode, window=window)
    ends = torch.zeros(1, 50, dtype=torch.long)
    ends[0, [0, 12, 25]] = 7
    own = packed(documents_of(ends, 7))
    apart = []
    for part in (slice(0, 1), slice(1, 13), slice(13, 26), slice(26, 50)):
        some = {n: v[:, part] if n in ("qkv", "gates") else v for n, v in x.items()}
        apart.append(computed(some, mode))
    wanted = torch.cat(apart, 1).detach()
    for rows in (256, 7):
        monkeypatch.setattr(torch_linear, "ROWS", rows)
        found = computed(x, mode, packed=own)
        assert (found - wanted).abs().max() < 1e-12 * max(1.0, float(wanted.abs().max()))


def test_sequences_without_their_window_have_the_state_alone() -> None:
    x = given(40, 7, "shifted", window=True)
    for name in ("qkv", "gates"):
        x[name] = torch.cat([x[name], x[name]])
    found = computed(x, "shifted", keep=torch.tensor([True, False]))
    alone = {name: v for name, v in x.items() if name != "log_window"}
    assert (found[1] - computed(alone, "shifted")[1]).abs().max() < 1e-12
    assert (found[0] - computed(x, "shifted")[0]).abs().max() < 1e-12
    assert (found[0] - found[1]).abs().max() > 1e-3
