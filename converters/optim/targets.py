"""Which parameters MSign touches, and how a fused projection splits into matrices."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "c_attn", "in_proj"}
FUSED = {"qkv", "qkv_proj", "c_attn", "in_proj"}
# These suffixes also name projections of MLP or state-space modules.
NEED_PARENT = {"out_proj", "c_proj", "qkv", "qkv_proj", "in_proj"}
OUTPUT = {"o_proj", "out_proj", "c_proj"}
TARGETS = ("attn", "attn_out", "all2d")
NEVER = re.compile(r"emb|^wte$|^wpe$|lm_head|norm|^ln(_|\d|$)")

Target = str | Callable[[str, Tensor], bool]


def parts_of(name: str) -> list[str]:
    """Components of a parameter name, the trailing "weight" removed."""
    parts = re.sub(r"[._]weight$", "", name).split(".")
    return [part for part in parts if part not in ("_orig_mod", "module")]


def is_attention(name: str) -> bool:
    """True for attention projections by suffix; ambiguous suffixes need an attention parent."""
    *parents, last = parts_of(name)
    if last not in ATTENTION | NEED_PARENT:
        return False
    return last not in NEED_PARENT or any("attn" in p or "attention" in p for p in parents)


def matches(name: str, p: Tensor, targets: Target) -> bool:
    """Whether `targets` selects the parameter.

    Tensors with fewer than two dimensions and those tagged `_edgert_no_msign` never match; by the
    named rules neither do embeddings, output heads and norms.
    """
    if p.ndim < 2 or getattr(p, "_edgert_no_msign", False):
        return False
    if callable(targets):
        return bool(targets(name, p))
    if any(NEVER.search(part) for part in parts_of(name)):
        return False
    if targets == "all2d":
        return True
    return is_attention(name) and (targets == "attn" or parts_of(name)[-1] in OUTPUT)


def select_targets(
    named: Iterable[tuple[str, Tensor]], targets: Target, trained: set[int]
) -> list[tuple[str, Tensor]]:
    """The matching parameters among those (by id) the optimizer trains; ValueError if none."""
    if not callable(targets) and targets not in TARGETS:
        raise ValueError(f"targets is {targets!r}, expected {', '.join(TARGETS)} or a callable")
    pairs = list(named)
    found = [(n, p) for n, p in pairs if id(p) in trained and matches(n, p, targets)]
    if not found:
        names = ", ".join(name for name, _ in pairs[:5]) or "no parameters"
        raise ValueError(
            f"targets={targets!r} matches none of the optimizer's parameters ({names})"
        )
    return found


def matrix_parts(name: str, p: Tensor) -> list[Tensor]:
    """Views `[rows, cols]` of the matrices inside `p`: one, or Q, K, V of a fused projection.

    A fused projection is split by its tag `_edgert_qkv_rows = (q, k, v)`, else into thirds of the
    longer side where that is three times the other. Raises ValueError if neither is possible, or
    if a tensor of more than two dimensions is not contiguous.
    """
    if p.ndim > 2 and not p.is_contiguous():
        raise ValueError(f"{name} {tuple(p.shape)} is not contiguous, expected contiguous weights")
    matrix = p.detach().view(p.shape[0], -1) if p.ndim > 2 else p.detach()
    if parts_of(name)[-1] not in FUSED:
        return [matrix]
    rows, cols = matrix.shape
    sizes = getattr(p, "_edgert_qkv_rows", None)
    if sizes is not None and sum(sizes) == rows:
        return list(torch.split(matrix, list(sizes)))
    if sizes is None and rows == 3 * cols:
        return list(matrix.chunk(3, dim=0))
    if sizes is None and cols == 3 * rows:
        return list(matrix.chunk(3, dim=1))
    raise ValueError(
        f"{name} is a fused projection of shape {rows} x {cols} with row tag {sizes}; expected "
        "rows = 3 * cols or a tag p._edgert_qkv_rows = (q, k, v) that adds up to its rows"
    )


def layer_of(name: str) -> int:
    """The first number in a parameter name: its layer; -1 without one."""
    return next((int(part) for part in name.split(".") if part.isdigit()), -1)
