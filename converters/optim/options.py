"""The arguments of `Dash`: limits, defaults that depend on the device, and saved-state checks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .roots import SOLVERS, RootConfig
from .scaling import SCALINGS
from .stacks import Hyper

LARGE_MODEL = 500_000_000  # parameters


def resolve(options: dict[str, Any], params: Iterable[Tensor]) -> tuple[int, Hyper]:
    """Tile side and shared settings, with the defaults that depend on the device filled in."""
    params = list(params)
    cuda = any(p.is_cuda for p in params)
    solver = options["solver"]
    if solver == "auto":
        solver = "ndb" if cuda else "evd"
    if solver == "cn_fp16" and not cuda:
        raise ValueError("solver 'cn_fp16' needs parameters on a CUDA device, found none")
    freq = options["freq"] or (1 if cuda and solver in ("ndb", "cn", "cn_fp16") else 10)
    root = RootConfig(
        solver=solver,
        eps=options["eps_root"],
        steps=options["newton_steps"],
        scaling=options["scaling"],
        degree=options["cheb_degree"],
        seed=options["seed"],
    )
    beta_grad, beta_factor, beta_graft = options["betas"]
    hyper = Hyper(
        beta_grad=beta_grad,
        beta_factor=beta_factor,
        beta_graft=beta_graft,
        eps_graft=options["eps_graft"],
        freq=freq,
        start=options["start"],
        mu=options["mu"],
        nesterov=options["nesterov"],
        root=root,
    )
    large = sum(p.numel() for p in params) >= LARGE_MODEL
    return options["block"] or ((1024 if large else 512) if cuda else 128), hyper


def check_options(o: dict[str, Any], *, allow_high_mu: bool) -> None:
    """Raise ValueError for the first argument of `Dash` that is out of range."""
    choices = {
        "solver": ("auto", *SOLVERS),
        "scaling": SCALINGS,
        "one_dim": ("adamw", "shampoo"),
        "stack": ("model", "layer"),
    }
    for name, allowed in choices.items():
        if o[name] not in allowed:
            raise ValueError(f"{name} is {o[name]!r}, expected one of {', '.join(allowed)}")
    if len(o["betas"]) != 3:
        raise ValueError(f"betas has {len(o['betas'])} values, expected 3")
    for position, beta in enumerate(o["betas"]):
        if not (0 <= beta < 1 or (position == 1 and beta == 1)):
            raise ValueError(f"betas[{position}] is {beta}, expected 0 <= beta < 1 (factors: <= 1)")
    for name, least in (("block", 1), ("freq", 1), ("newton_steps", 1), ("cheb_degree", 2)):
        if o[name] is not None and o[name] < least:
            raise ValueError(f"{name} is {o[name]}, expected an integer >= {least}")
    for name in ("eps_root", "eps_graft"):
        if o[name] is not None and not o[name] >= 0:
            raise ValueError(f"{name} is {o[name]}, expected a number >= 0")
    if not 0 <= o["mu"] < 1:
        raise ValueError(f"mu is {o['mu']}, expected 0 <= mu < 1")
    if o["mu"] > 0.5 and not allow_high_mu:
        raise ValueError(
            f"mu is {o['mu']}; above 0.5 training is reported to diverge: pass allow_high_mu=True"
        )


def check_saved(saved: dict[str, Any], mine: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Raise ValueError if a saved state does not belong to an optimizer like this one."""
    for name in ("format", "shapes", "index", "seed"):
        if saved.get(name) != mine[name]:
            raise ValueError(
                f"the saved {name} differs from this optimizer's: expected parameters of the "
                "same shapes in the same order and the same block, stack, one_dim and seed"
            )
    missing = sorted(set(tensors) ^ set(saved["tensors"]))
    if missing:
        raise ValueError(
            f"the saved state and this optimizer disagree on {missing[:3]}: expected the same "
            "betas, mu and exclude"
        )
    for name, tensor in tensors.items():
        if saved["tensors"][name].shape != tensor.shape:
            raise ValueError(
                f"{name} has shape {tuple(saved['tensors'][name].shape)}, "
                f"expected {tuple(tensor.shape)}"
            )
