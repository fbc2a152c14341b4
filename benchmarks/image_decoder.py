"""Decoding a picture from latents: edgert's CPU session against torch, in turn within one minute.

    python -m benchmarks.image_decoder --weights ../shared/data/vae-taef2 --side 512 --threads 1 2

TAEF2's decoder, the same float32 weights and latents on both sides; torch as it is, and with
channels last. Printed are medians and the ratio of them (above 1: edgert is faster), how far the
pictures are apart, and what the program's values take in memory.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from edgert.converters.families import taef2

from edgert.session.cpu import CpuSession


def stored(folder: Path) -> dict[str, np.ndarray]:
    """The decoder's tensors, float32, as the family names them."""
    from safetensors.numpy import load_file

    found = load_file(folder / "taef2_decoder.safetensors")
    return {f"decoder.{name}": array.astype(np.float32) for name, array in found.items()}


def torch_decoder(tensors: dict[str, np.ndarray]) -> Any:
    """The model of the weights' README."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, pooled: bool) -> None:
            super().__init__()
            convs = [nn.Conv2d(64, 64, 3, padding=1) for _ in range(3)]
            relu = nn.ReLU(inplace=True)
            self.conv = nn.Sequential(convs[0], relu, convs[1], relu, convs[2])
            self.pool = nn.Sequential(
                nn.Conv2d(64, 256, 1, bias=False), nn.GroupNorm(4, 256), nn.ReLU(inplace=True),
                nn.Conv2d(256, 64, 1, bias=False),
            ) if pooled else None  # fmt: skip

        def forward(self, x: Any) -> Any:
            x = x if self.pool is None else x + self.pool(x)
            return torch.relu_(self.conv(x) + x)

    class Clamp(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.tanh(x / 3) * 3

    layers: list[Any] = [Clamp(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(inplace=True)]
    layers += [Block(True) for _ in range(3)]
    for blocks in (3, 3, 1):
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, bias=False)]
        layers += [Block(False) for _ in range(blocks)]
    module = nn.Sequential(*layers, nn.Conv2d(64, 3, 3, padding=1))
    names = {n.removeprefix("decoder."): torch.from_numpy(t) for n, t in tensors.items()}
    module.load_state_dict(names)
    return module.eval()


def measured(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, the order turning round by round."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds):
        for name in list(runs)[:: 1 if index % 2 else -1]:
            time.sleep(0.03)  # the other one's threads stop spinning
            start = time.perf_counter()
            runs[name]()
            spent[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in spent.items()}


def compared(folder: Path, side: int, threads: int, rounds: int) -> dict[str, Any]:
    """One line of results."""
    import torch

    torch.set_num_threads(threads)
    tensors, faults = stored(folder), list[str]()
    grid = side // taef2.DOWNSCALE
    model = taef2.decoder({}, grid, grid, faults)
    if faults:
        raise ValueError(faults[0])
    weights = {
        name: recipe.arranged(tensors[recipe.parts[0].name])
        for name, recipe in model.tensors.items()
    }
    session = CpuSession(model.graph, weights, threads=threads)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((grid * grid, 32)).astype(np.float32)
    module = torch_decoder(tensors)
    x = torch.from_numpy(rows.T.reshape(1, 32, grid, grid).copy())
    last = x.contiguous(memory_format=torch.channels_last)
    other = torch_decoder(tensors).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        runs: dict[str, Callable[[], Any]] = {
            "edgert": lambda: session.run({"latents": rows}),
            "torch": lambda: module(x),
            "torch, channels last": lambda: other(last),
        }
        pixels = runs["edgert"]()["pixels"]
        expected = runs["torch"]()[0].numpy().reshape(3, -1).T
        runs["torch, channels last"]()
        times = measured(runs, rounds)
    arena = max(program.nbytes for program in session._programs.values())
    session.close()
    return {
        "side": side, "threads": threads,
        "ms": {name: round(1e3 * value, 1) for name, value in times.items()},
        "torch / edgert": round(times["torch"] / times["edgert"], 2),
        "best torch / edgert": round(min(times["torch"], times["torch, channels last"])
                                     / times["edgert"], 2),
        "largest difference": float(np.abs(pixels - expected).max()),
        "arena MiB": round(arena / 2**20, 1),
    }  # fmt: skip


def main() -> None:
    """Print a line for each thread count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="folder of TAEF2")
    parser.add_argument("--side", type=int, default=512, help="pixels, a multiple of 8")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    for threads in given.threads:
        print(json.dumps(compared(given.weights, given.side, threads, given.rounds)), flush=True)


if __name__ == "__main__":
    main()
