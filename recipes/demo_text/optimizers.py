"""AdamW, DASH or DASH+MSign for the demo model.

DASH and MSign are edgert's own. Where edgert is not installed (a rented GPU with nothing but
torch), the package is loaded from the source tree by path, which needs none of edgert's other
dependencies.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

KINDS = ("adamw", "dash", "dash+msign")
BETAS = (0.9, 0.95)


def optim_package() -> ModuleType:
    """edgert.converters.optim, installed or straight from converters/optim/ of this source tree."""
    try:
        return importlib.import_module("edgert.converters.optim")
    except ModuleNotFoundError:
        pass  # not installed: below
    name = "_edgert_optim"
    if name not in sys.modules:
        init = Path(__file__).resolve().parents[2] / "converters" / "optim" / "__init__.py"
        spec = importlib.util.spec_from_file_location(
            name, init, submodule_search_locations=[str(init.parent)]
        )
        if spec is None or spec.loader is None:
            raise ImportError(f"edgert is not installed and {init} is missing")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def build_optimizer(
    kind: str,
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    block: int = 512,
    freq: int = 10,
    period: int = 100,
) -> torch.optim.Optimizer:
    """An optimizer over all parameters; weight decay on matrices only.

    The embedding stays with DASH's own AdamW: its tiles would cost a quarter more solver time, and
    a factor over rows would mix tokens that only their numbers make neighbours.
    """
    if kind not in KINDS:
        raise ValueError(f"optimizer {kind!r} is unknown; expected one of {', '.join(KINDS)}")
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    cuda = matrices[0].is_cuda
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=cuda)
    package = optim_package()
    embedding = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    dash = package.Dash(
        groups,
        lr=lr,
        block=block,
        freq=freq,
        solver="ndb" if cuda else "evd",
        exclude=lambda parameter: id(parameter) in embedding,
    )
    if kind == "dash":
        return dash
    return package.MSign(dash, named_params=model.named_parameters(), period=period, polar="auto")
