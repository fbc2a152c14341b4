"""One evaluation of a UNet in the shape of Stable Diffusion 1.5: edgert's CPU session against
diffusers' module in torch (float32), in turn within one minute.

    python -m benchmarks.image_unet --shape sd1 --quant int8 --threads 1 2

The same random weights on both sides, which edgert has in the encoding that a conversion gives
them. Printed are the least seconds of a few rounds, by the clock and of all cores together (which
is what a busy machine leaves comparable, with one thread), their ratio (above 1: edgert is faster),
how far the outputs are apart (relative RMS), and what packed weights and the program's values take
in memory. With --alone nothing but edgert runs, for the peak of the process, and weights are random
codes.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from edgert.converters.families import unet
from edgert.converters.stages.part_encodings import encodings_of
from edgert.converters.stages.quantize import encoded
from edgert.kernels import encodings
from edgert.kernels.quant import Quantized

from edgert.graph import Graph
from edgert.session import kernel_cache
from edgert.session.cpu import CpuSession

WIDTHS = {"sd1": (320, 640, 1280, 1280), "half": (160, 320, 640, 640), "quarter": (64, 128, 256)}
CAPTION = (77, 768)


def config_of(shape: str) -> dict[str, Any]:
    """config.json of a shape of WIDTHS."""
    widths = WIDTHS[shape]
    more = len(widths) - 1
    return {
        "sample_size": 64, "block_out_channels": widths, "cross_attention_dim": CAPTION[1],
        "down_block_types": (*["CrossAttnDownBlock2D"] * more, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * more),
    }  # fmt: skip


def random_weight(shape: tuple[int, ...], encoding: str, rng: np.random.Generator) -> Any:
    """A weight of random values or codes, of the deviation of an untrained one."""
    deviation = shape[-1] ** -0.5
    if len(shape) == 1:
        return (0.02 * rng.standard_normal(shape) + 1).astype(np.float32)
    row = encodings.ENCODINGS[encoding]
    if row.plain:
        return (deviation * rng.standard_normal(shape, np.float32)).astype(row.plain)
    tensors = {}
    for name, (dtype, size) in row.specs("w", shape).items():
        key, count = name.rpartition(".")[2], math.prod(size)
        if dtype == "U8":
            tensors[key] = np.frombuffer(rng.bytes(count), np.uint8).reshape(size)
        else:
            scales = deviation / 2**row.bits * rng.uniform(1, 4, size)
            tensors[key] = scales.astype(np.float16)
    return Quantized(encoding, shape, tensors)


def stored(module: Any, model: Any, graph: Graph) -> dict[str, Any]:
    """The weights of torch's module, encoded."""
    tensors = {name: t.detach().numpy() for name, t in module.state_dict().items()}
    found = {}
    for name, recipe in model.tensors.items():
        parts = [tensors[p.name][slice(*p.span)] for p in recipe.parts]
        w = recipe.arranged(np.concatenate(parts) if len(parts) > 1 else parts[0])
        encoding = graph.weights[name].encoding
        found[name] = w if encoding == "f32" else encodings.quantize(w, encoding)
    return found


def graph_of(shape: str, quant: str) -> tuple[Any, Graph]:
    """The family's model, and its graph with encodings."""
    faults: list[str] = []
    model = unet.build(config_of(shape), 64, 64, faults)
    if faults:
        raise ValueError(faults[0])
    chosen = encodings_of("denoiser", model.graph, quant, "int8-g32")
    return model, encoded(model.graph, quant, "int8-g32", chosen)


def inputs() -> dict[str, np.ndarray]:
    """Random latents and caption."""
    rng = np.random.default_rng(0)
    return {
        "x": rng.standard_normal((64 * 64, 4)).astype(np.float32),
        "timestep": np.array([[401.0]], np.float32),
        "caption": rng.standard_normal(CAPTION).astype(np.float32),
    }


def torch_run(module: Any, given: dict[str, np.ndarray]) -> Callable[[], np.ndarray]:
    """The module's answer, rows [64 * 64, 4]."""
    import torch

    x = torch.from_numpy(given["x"].T.reshape(1, 4, 64, 64).copy())
    caption, t = torch.from_numpy(given["caption"])[None], torch.tensor([401.0])

    def run() -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(module(x, t, caption).sample[0].reshape(4, -1).T)

    return run


def measured(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """The least seconds of each, by the clock and of all cores."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for index in range(rounds):
        for name in list(runs)[:: 1 if index % 2 else -1]:
            time.sleep(0.03)  # the other one's threads stop spinning
            begin = time.perf_counter(), time.process_time()
            runs[name]()
            spent[name].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    return {
        name: (min(wall for wall, _ in times), min(cpu for _, cpu in times))
        for name, times in spent.items()
    }


def sizes_of(session: CpuSession) -> dict[str, float]:
    arena = max(program.nbytes for program in session._programs.values())
    packed = session.packed_weights.nbytes
    return {"packed MiB": round(packed / 2**20), "arena MiB": round(arena / 2**20, 1)}


def compared(shape: str, quant: str, threads: list[int], rounds: int) -> None:
    """Prints a line for each number of threads."""
    import diffusers
    import torch

    torch.manual_seed(0)
    module = diffusers.UNet2DConditionModel(**config_of(shape)).eval()
    model, graph = graph_of(shape, quant)
    weights, given = stored(module, model, graph), inputs()
    for count in threads:
        torch.set_num_threads(count)
        session = CpuSession(graph, weights, threads=count, cache=kernel_cache())
        runs: dict[str, Callable[[], Any]] = {
            "edgert": partial(session.run, given),
            "torch": torch_run(module, given),
        }
        got, want = runs["edgert"]()["out"], runs["torch"]()
        times, size = measured(runs, rounds), sizes_of(session)
        session.close()
        print(json.dumps({
            "shape": shape, "quant": quant, "threads": count,
            "s": {name: [round(value, 2) for value in both] for name, both in times.items()},
            "torch / edgert": [
                round(theirs / ours, 2)
                for theirs, ours in zip(times["torch"], times["edgert"], strict=True)
            ],
            "relative RMS": float(f"{np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)):.3g}"),
            **size,
        }), flush=True)  # fmt: skip


def alone(shape: str, quant: str, threads: list[int], rounds: int) -> None:
    """Prints a line for each number of threads, of edgert alone."""
    _, graph = graph_of(shape, quant)
    rng = np.random.default_rng(0)
    weights = {n: random_weight(w.shape, w.encoding, rng) for n, w in graph.weights.items()}
    for count in threads:
        session = CpuSession(graph, weights, threads=count, cache=kernel_cache())
        run = partial(session.run, inputs())
        times = measured({"edgert": run}, rounds)
        size = sizes_of(session)
        session.close()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({
            "shape": shape, "quant": quant, "threads": count, "s": times["edgert"],
            **size, "peak MiB": round(peak),
        }), flush=True)  # fmt: skip


def main() -> None:
    """Print a line for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(WIDTHS), default="half")
    parser.add_argument("--quant", default="int8-g32", help="f32, f16, int8-g32, int4-g32, ...")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true")
    given = parser.parse_args()
    (alone if given.alone else compared)(given.shape, given.quant, given.threads, given.rounds)


if __name__ == "__main__":
    main()
