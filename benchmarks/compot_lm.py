"""COMPOT and its baselines on a small language model that is trained here, in a few minutes.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.compot_lm [--ratios 0.2 0.3] [--save FILE]

A byte-level decoder (width 96, 3 blocks, 4 heads, SwiGLU 288) learns the Python sources of the
standard library; all 7 projections of its blocks are compressed with calibration on training text.
Cells are nats per byte above the dense model on held-out text, with the reference value in
brackets. The reference was trained by the same recipe, as far as that is known, on other sources:
its losses are about twice as large, so compare ratios of rows. Full accounting: mask bits count.
COMPOT: arXiv 2602.15200. SVD-LLM: arXiv 2403.07378. CoSpaDi: arXiv 2509.22075.
"""

from __future__ import annotations

import argparse
import sysconfig
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from edgert.converters.compress.allocate import allocate, spectrum
from edgert.converters.compress.baselines import cospadi, svd_llm, truncated_svd
from edgert.converters.compress.budget import Dims, choose
from edgert.converters.compress.checks import F64
from edgert.converters.compress.compot import Options, compot
from edgert.converters.compress.result import Factors
from edgert.converters.compress.whiten import GramAccumulator, Whitening, whiten
from torch import Tensor, nn
from torch.nn import functional

WIDTH, BLOCKS, HEADS, INNER, CONTEXT = 96, 3, 4, 288, 96
STEPS, BATCH, RATE, WARM_UP, DECAY = 1100, 16, 3e-3, 50, 0.05
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
REFERENCE = {
    "SVD": {0.2: 0.231, 0.3: 0.403},
    "SVD-LLM": {0.2: 0.0424, 0.3: 0.0721, 0.4: 0.128},
    "CoSpaDi 20": {0.2: 0.0267, 0.3: 0.0437, 0.4: 0.0805},
    "COMPOT 20": {0.2: 0.0281, 0.3: 0.0478, 0.4: 0.0882},
    "COMPOT 20 + refit": {0.2: 0.0246, 0.3: 0.0430, 0.4: 0.0831},
    "COMPOT + allocation": {0.2: 0.0154, 0.3: 0.0259, 0.4: 0.0519},
    "COMPOT + allocation + refit": {0.2: 0.0134, 0.3: 0.0229, 0.4: 0.0482},
    "SVD-LLM + same allocation": {0.2: 0.0266, 0.3: 0.0420, 0.4: 0.0770},
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        for name in "qkvo":
            self.add_module(name, nn.Linear(WIDTH, WIDTH, bias=False))
        self.gate = nn.Linear(WIDTH, INNER, bias=False)
        self.up = nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (
            self.get_submodule(name)(h).unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in "qkv"
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.get_submodule("o")(mixed.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        added: Tensor = x + self.down(functional.silu(self.gate(h)) * self.up(h))
        return added


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 256, bias=False)
        for embedding in (self.bytes, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def loss(self, rows: Tensor) -> Tensor:
        """Mean nats per byte of `rows [batch, CONTEXT + 1]`, int64."""
        x = self.bytes(rows[:, :-1]) + self.places.weight
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def text(limit: int = 6_000_000) -> tuple[Tensor, Tensor]:
    """Training and held-out bytes: sources of the standard library, files in a fixed order."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(
        path for path in folder.rglob("*.py")
        if not {"site-packages", "test", "tests", "__pycache__"} & set(path.parts)
    )  # fmt: skip
    np.random.default_rng(0).shuffle(paths)  # type: ignore[arg-type]
    joined = b"\n".join(path.read_bytes() for path in paths)[:limit]
    data = torch.from_numpy(np.frombuffer(joined, np.uint8).astype(np.int64))
    cut = len(data) * 9 // 10
    return data[:cut], data[cut:]


def windows(data: Tensor, count: int, seed: int) -> Tensor:
    """`[count, CONTEXT + 1]` random windows."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(data) - CONTEXT - 1, (count,), generator=generator)
    return data[starts[:, None] + torch.arange(CONTEXT + 1)]


def train(data: Tensor, steps: int = STEPS) -> Model:
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    for step in range(steps):
        share = max(step - WARM_UP, 0) / max(steps - WARM_UP, 1)
        cosine = 0.05 + 0.95 * (1 + np.cos(np.pi * share)) / 2
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARM_UP, cosine)
        loss = model.loss(windows(data, BATCH, step))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


class Bench:
    """A trained model, its projections and the whitening of their inputs."""

    def __init__(self, model: Model, data: Tensor, held_out: Tensor) -> None:
        self.model, self.rows = model, windows(held_out, 384, 1)
        self.layers: dict[str, nn.Linear] = {
            f"{place}.{name}": block.get_submodule(name)  # type: ignore[misc]
            for place, block in enumerate(model.blocks) for name in PROJECTIONS
        }  # fmt: skip
        self.weights = {
            name: layer.weight.detach().numpy().T.astype(np.float64)
            for name, layer in self.layers.items()
        }
        self.whitenings = self._whitenings(windows(data, 256, 2))
        self.dense = self.nats()

    def _whitenings(self, rows: Tensor) -> dict[str, Whitening]:
        grams = {name: GramAccumulator(len(w), name=name) for name, w in self.weights.items()}

        def collect(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
                grams[name].add(given[0].numpy())

            return hook

        hooks = [
            layer.register_forward_pre_hook(collect(name)) for name, layer in self.layers.items()
        ]
        with torch.no_grad():
            for part in rows.split(64):
                self.model.loss(part)
        for hook in hooks:
            hook.remove()
        return {name: whiten(gram.finish(), name=name) for name, gram in grams.items()}

    @torch.no_grad()
    def nats(self) -> float:
        return float(np.mean([float(self.model.loss(part)) for part in self.rows.split(64)]))

    @torch.no_grad()
    def above_dense(self, products: Mapping[str, F64]) -> float:
        """Nats per byte above the dense model with these weights `[m, n]` in their places."""
        try:
            for name, product in products.items():
                self.layers[name].weight.copy_(torch.from_numpy(product.T.copy()))
            return self.nats() - self.dense
        finally:
            for name, weight in self.weights.items():
                self.layers[name].weight.copy_(torch.from_numpy(weight.T.copy()))


Method = Callable[[F64, Whitening, Dims, float], Factors]


def rank(dims: Dims, ratio: float) -> int:
    return int((1 - ratio) * dims.m * dims.n / (dims.m + dims.n))


METHODS: dict[str, tuple[Method, bool]] = {
    "SVD": (lambda w, white, d, ratio: truncated_svd(w, white, rank(d, ratio)), False),
    "SVD-LLM": (lambda w, white, d, ratio: svd_llm(w, white, rank(d, ratio)), False),
    "CoSpaDi 20": (lambda w, white, d, _: cospadi(w, white, d.k, d.s, iterations=20), False),
    "COMPOT 20": (lambda w, white, d, _: compot(w, white, d.k, d.s), False),
    "COMPOT 20 + refit": (
        lambda w, white, d, _: compot(w, white, d.k, d.s, Options(refit=True)), False),
    "COMPOT + allocation": (lambda w, white, d, _: compot(w, white, d.k, d.s), True),
    "COMPOT + allocation + refit": (
        lambda w, white, d, _: compot(w, white, d.k, d.s, Options(refit=True)), True),
    "SVD-LLM + same allocation": (
        lambda w, white, d, ratio: svd_llm(w, white, rank(d, ratio)), True),
}  # fmt: skip


def measure(bench: Bench, name: str, ratio: float) -> tuple[float, float]:
    """(nats per byte above dense, seconds of factoring) of a method at a compression ratio."""
    method, allocated = METHODS[name]
    if allocated:
        found = allocate([spectrum(w) for w in bench.weights.values()], ratio, smallest=1)
        ratios, sizes = list(found.ratios), list(found.dims)
    else:
        ratios = [ratio] * len(bench.weights)
        sizes = [choose(*w.shape, ratio, smallest=1) for w in bench.weights.values()]
    begin, products = time.perf_counter(), {}
    for (layer, w), dims, part in zip(bench.weights.items(), sizes, ratios, strict=True):
        if dims.form != "dense":
            products[layer] = method(w, bench.whitenings[layer], dims, part).product()
    return bench.above_dense(products), time.perf_counter() - begin


def prepare(saved: Path | None = None) -> Bench:
    data, held_out = text()
    if saved is not None and saved.is_file():
        model = Model()
        model.load_state_dict(torch.load(saved, weights_only=True))
    else:
        model = train(data)
        if saved is not None:
            torch.save(model.state_dict(), saved)
    return Bench(model.eval(), data, held_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.3, 0.4])
    parser.add_argument("--save", type=Path, help="keep the trained model here, or read it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    bench = prepare(options.save)
    print(f"dense: {bench.dense:.3f} nats per byte (1.580), {time.perf_counter() - begin:.0f} s\n")
    print(f"| method | {' | '.join(f'CR {ratio:g}' for ratio in options.ratios)} | seconds |")
    print("|---" * (len(options.ratios) + 2) + "|")
    for name, reference in REFERENCE.items():
        cells, spent = [], 0.0
        for ratio in options.ratios:
            nats, seconds = measure(bench, name, ratio)
            spent += seconds
            cells.append(f"{nats:.4f} ({reference.get(ratio, float('nan')):.4f})")
        print(f"| {name} | {' | '.join(cells)} | {spent:.1f} |", flush=True)


if __name__ == "__main__":
    main()
