"""The `--gpu` part of optimizers.py: step times of DASH and MSign on one CUDA device.

Run it through `python benchmarks/optimizers.py --gpu`. It must end within a minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from optimizers import blocks, optim, roots
from torch import Tensor, nn

# A Llama-layout model of about 24M parameters; embeddings tied, queries grouped.
MODEL = {"vocab": 12288, "d": 384, "layers": 12, "kv": 128, "mlp": 1024}
SECONDS = 50.0  # no new measurement starts after this
SAMPLE = 24  # tiles timed for the per-block loop
PAPER = """Published step times in ms, 953M parameters, 8 x H100-80GB (arXiv 2602.02016):
      B  solver, freq          Distributed Shampoo   DASH layerwise   DASH GPU
   1024  EVD 1                                3080             2850       2850
   1024  EVD 10                                355              315        313
   1024  CN 1 FRO fp32                         666              149        136
   1024  CN 1 FRO fp16                         471              138        119
   1024  NDB 1 FRO fp32                        558              188        174
   1024  NDB 1 PI fp32                         740              194        177
   2048  EVD 1 / EVD 10                 2200 / 253       1747 / 209 1755 / 210
   2048  CN fp32 / CN fp16               675 / 243        221 / 169  207 / 153
   2048  NDB FRO / NDB PI                  - / 355        279 / 284  264 / 267"""

Clock = Callable[..., float]


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the MODEL's parameters."""
    d, kv, mlp = MODEL["d"], MODEL["kv"], MODEL["mlp"]
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (d, d),
        "self_attn.k_proj": (kv, d),
        "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, d),
        "mlp.gate_proj": (mlp, d),
        "mlp.up_proj": (mlp, d),
        "mlp.down_proj": (d, mlp),
        "input_norm": (d,),
        "post_norm": (d,),
    }
    yield "embed_tokens.weight", (MODEL["vocab"], d)
    for i in range(MODEL["layers"]):
        for name, shape in layer.items():
            yield f"layers.{i}.{name}.weight", shape


def parameters() -> dict[str, nn.Parameter]:
    """Weights with gradients whose rows differ in scale by a thousand, to condition the factors."""
    out = {}
    for name, shape in shapes():
        p = nn.Parameter(0.02 * torch.randn(shape, device="cuda"))
        scale = torch.logspace(-3, -6, shape[0], device="cuda")
        p.grad = torch.randn(shape, device="cuda") * scale.view(-1, *[1] * (len(shape) - 1))
        out[name] = p
    return out


def tiles_of(params: list[nn.Parameter], block: int) -> list[Tensor]:
    """Every gradient tile as a view."""
    out: list[Tensor] = []
    for p in params:
        if p.ndim == 2 and p.grad is not None:
            for grid in blocks.tile_grids(*p.shape, block):
                out += blocks.grid_view(p.grad, grid).flatten(0, 1).unbind()
    return out


def looped_step(tiles: list[Tensor], solver: str, clock: Clock) -> float:
    """Seconds of one step tile after tile: a sample of the tiles is timed, then scaled up."""
    chosen = tiles[:: max(1, len(tiles) // SAMPLE)][:SAMPLE]
    config = roots.RootConfig(solver)
    factors = [[torch.zeros(k, k, device="cuda") for k in tile.shape] for tile in chosen]
    moments = [[torch.zeros_like(tile), torch.zeros_like(tile)] for tile in chosen]

    def step() -> None:
        for g, (left, right), (mean, square) in zip(chosen, factors, moments, strict=True):
            left.mul_(0.95).addmm_(g, g.T, alpha=0.05)
            right.mul_(0.95).addmm_(g.T, g, alpha=0.05)
            a, _ = roots.inverse_root(left[None], 4, config)
            b, _ = roots.inverse_root(right[None], 4, config)
            mean.lerp_(g, 0.1)
            square.lerp_(g * g, 0.05)
            adam = mean / (square.sqrt() + 1e-8)
            u = a[0] @ mean @ b[0]
            u.mul_(adam.norm() / (u.norm() + 1e-16))

    step()
    return clock(step, seconds=0.3, most=3) * len(tiles) / len(chosen)


def dash_row(
    params: list[nn.Parameter], block: int, solver: str, plain: float, clock: Clock
) -> None:
    """One line of the table: stacked steps, the loop, and their ratio."""
    stacked = optim.Dash(params, 1e-5, block=block, solver=solver, freq=1)
    if solver != "evd":  # an EVD step takes seconds and its library is warm already
        stacked.step()
    full = clock(stacked.step, seconds=0.5, most=10)
    tiles = tiles_of(params, block)
    looped = looped_step(tiles, solver, clock)
    print(
        f"  {block:4}  {solver:8} {1e3 * full:12.2f} {1e2 * (full + 9 * plain):12.2f} "
        f"{1e3 * looped:12.1f} {looped / full:8.1f}x {len(tiles):7} {stacked.stats['fallbacks']:9}",
        flush=True,
    )


def msign_rows(named: dict[str, nn.Parameter], base: float, clock: Clock) -> None:
    """What one application costs, and what that is per step."""
    for method in ("svd", "newton_schulz"):
        adamw = torch.optim.AdamW(named.values(), 1e-4)
        wrapper = optim.MSign(adamw, named_params=named.items(), polar=method)
        wrapper.apply()
        cost = clock(wrapper.apply, seconds=2.0, most=5)
        print(
            f"  MSign on attention, {method}: {1e3 * cost:.1f} ms per application, "
            f"{1e3 * cost / 100:.3f} ms per step at P=100, {cost / 100 / base:.1%} of AdamW's step"
        )


def run(gate: Callable[[], None], clock: Clock) -> None:
    """Print every table; SystemExit without a CUDA device or if a solver is wrong on it."""
    if not torch.cuda.is_available():
        raise SystemExit("--gpu needs a CUDA device, found none")
    gate()
    begin = time.perf_counter()
    named = parameters()
    params = list(named.values())
    count = sum(p.numel() for p in params)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {count / 1e6:.1f}M parameters"
    )
    adamw: Any = torch.optim.AdamW(params, 1e-4, fused=True)
    adamw.step()
    base = clock(adamw.step)
    print(f"{PAPER}\nHere, ms per step. AdamW fused: {1e3 * base:.2f}")
    msign_rows(named, base, clock)
    print("     B  solver     stacked, 1  stacked, 10  one by one, 1   ratio   tiles  repaired")
    for block in (512, 256, 128):
        idle = optim.Dash(params, 1e-5, block=block, solver="ndb", freq=10**9)
        idle.step()
        plain = clock(idle.step)
        print(f"  {block:4}  between refreshes {1e3 * plain:.2f} = {plain / base:.1f} x AdamW")
        for solver in ("ndb", "cn", "cn_fp16", "evd"):
            if time.perf_counter() - begin > SECONDS:
                print(f"  {block:4}  {solver:8} not measured: out of time")
                continue
            dash_row(params, block, solver, plain, clock)
    print(f"  {time.perf_counter() - begin:.0f} s. 'stacked, 10' is (refresh + 9 others) / 10;")
    print(
        f"  'one by one' is scaled up from {SAMPLE} tiles. Falls short of the paper's set-up: one"
    )
    print("  device, a model forty times smaller, smaller blocks; only ratios of rows carry over.")
