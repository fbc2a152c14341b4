"""Random LoRA adapters as PEFT writes them, and the models that they make by the formula."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

PREFIX = "base_model.model."
CONFIG = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.05,
    "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "use_rslora": False,
    "use_dora": False, "init_lora_weights": True, "rank_pattern": {}, "alpha_pattern": {},
    "modules_to_save": None, "target_modules": ["q_proj"], "base_model_name_or_path": "x/y",
    "peft_version": "0.18.0", "loftq_config": {}, "megatron_core": "megatron.core",
}  # fmt: skip
Arrays = dict[str, np.ndarray]


def write_adapter(folder: Path, tensors: Mapping[str, np.ndarray], **config: Any) -> Path:
    """A PEFT folder of these tensors, by their names behind the prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config), encoding="utf-8")
    stored = {PREFIX + name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(stored, folder / "adapter_model.safetensors")
    return folder


def factors(
    shapes: Mapping[str, tuple[int, int]],
    *,
    rank: int | Mapping[str, int] = 4,
    seed: int = 0,
    size: float = 0.3,
) -> Arrays:
    """Random A and B for modules of these shapes [N, K], the products of about `size` times
    what random weights of that width have."""
    rng = np.random.default_rng(seed)
    found: Arrays = {}
    for module, (n, k) in shapes.items():
        r = (
            rank
            if isinstance(rank, int)
            else next(v for e, v in rank.items() if module.endswith(e))
        )
        a = rng.normal(size=(r, k)) / np.sqrt(k)
        b = rng.normal(size=(n, r)) * size / np.sqrt(r)
        found[f"{module}.lora_A.weight"] = a.astype(np.float32)
        found[f"{module}.lora_B.weight"] = b.astype(np.float32)
    return found


def shapes_of(model: Any, ends: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Modules of a transformers model whose names end so, with the shapes of their matrices."""
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.ndim == 2 and name.rpartition(".")[2] in ends:
            found[name] = (int(weight.shape[0]), int(weight.shape[1]))
    assert found, f"no modules {ends}"
    return found


def add_products(model: Any, arrays: Mapping[str, np.ndarray], scale: float) -> None:
    """W + scale * B A for every module of `arrays`, in place; with lengths of rows where there are
    some (DoRA)."""
    import torch

    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, a in arrays.items():
            if not name.endswith(".lora_A.weight"):
                continue
            module = name.removesuffix(".lora_A.weight")
            b, weight = arrays[f"{module}.lora_B.weight"], modules[module].weight
            found = weight + scale * torch.from_numpy(b) @ torch.from_numpy(a)
            lengths = arrays.get(f"{module}.lora_magnitude_vector")
            if lengths is not None:
                found *= torch.from_numpy(lengths)[:, None] / found.norm(dim=1, keepdim=True)
            weight.copy_(found)
