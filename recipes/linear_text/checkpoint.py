"""Checkpoints in Hugging Face's layout, read into a graph's weights and written from them.

Reads with nothing but torch and safetensors, where the rest of a conversion is not installed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgert.converters.families import FamilyModel, build
from edgert.converters.linearize.options import LinearizeOptions
from edgert.converters.linearize.plan import turnable
from safetensors.torch import load_file, save_file

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "generation_config.json")  # fmt: skip


def load(folder: Path) -> tuple[FamilyModel, dict[str, Any]]:
    """The family's model, and its weights float32 by graph name."""
    model = build(json.loads((folder / "config.json").read_text("utf-8")))
    tensors = load_file(folder / "model.safetensors")
    weights: dict[str, Any] = {}
    for name, recipe in model.tensors.items():
        if recipe.values is not None:
            weights[name] = recipe.values
            continue
        parts = [
            tensors[part.name if part.name in tensors else part.alias].float().numpy()
            for part in recipe.parts
        ]
        weights[name] = np.concatenate([recipe.arranged(part) for part in parts]) + recipe.offset
    return model, weights


def save(
    source: Path, folder: Path, weights: Mapping[str, Any], turned: tuple[int, ...],
    options: LinearizeOptions,
) -> None:  # fmt: skip
    """A turned model as a checkpoint that `edgert convert` reads: the family's own tensors in
    bfloat16, the new ones in float32."""
    config = json.loads((source / "config.json").read_text("utf-8"))
    if turned:
        turn = turnable(build(config).graph, options)[0]
        kinds = ["full_attention"] * config["num_hidden_layers"]
        for layer in turned:
            kinds[layer] = "linear_attention"
        config["layer_types"] = kinds
        config["linear_attention"] = {
            "mode": options.mode, "features": turn.features, "chunk": options.chunk, "conv": 2,
            "decay": True, "decay_bias": True, "maps": True, "key_mean": True,
            "window": turn.window,
        }  # fmt: skip
    known = set(load_file(source / "model.safetensors"))
    tensors: dict[str, torch.Tensor] = {}
    for name, recipe in build(config).tensors.items():
        start = 0
        for part in recipe.parts:
            stop = start + part.shape[0]
            rows = torch.from_numpy(np.ascontiguousarray(weights[name][start:stop]))
            kind = torch.bfloat16 if part.name in known else torch.float32
            tensors[part.name] = rows.reshape(part.shape).to(kind).contiguous()
            start = stop
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for file in FILES:
        if (source / file).exists():
            shutil.copyfile(source / file, folder / file)
