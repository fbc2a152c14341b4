"""The same denoiser in edgert, torch (diffusers) and OpenVINO: seconds of one evaluation, in turn.

    python -m benchmarks.image_peers --models DIR                    DiT-S/2 with random weights
    python -m benchmarks.image_peers --models DIR --shapes dit-s dit-xl
    python -m benchmarks.image_peers --models DIR --demo FOLDER      a trained pipeline, pictures
    python -m benchmarks.image_peers --print                         the tables of the lines so far

DIR keeps folders, bundles and OpenVINO's files. An evaluation is one branch of one picture; in a
round every program has its turn, the order turning round by round, and ratios are medians over
rounds. torch and OpenVINO are given a caption's real tokens alone, as edgert reads it: pipelines
of diffusers compute padded ones. With --demo also: PSNR of pictures by int8 and int4 against f32
from the same noise, and a whole picture of 50 steps with SenCache against torch f32 without.
Peers are optional (`pip install torch diffusers openvino nncf`); what is not there is named.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import edgert
from benchmarks.image_engines import Engine, Inputs, condition_of, inputs_of, opened, torch_module
from benchmarks.image_measures import psnr
from benchmarks.image_prompts import prompts_for
from benchmarks.machine import Watch, describe
from benchmarks.random_pictures import bundles_of, random_pipeline
from benchmarks.results import FOLDER, table
from benchmarks.timing import PAUSE, no_collection
from edgert.image.calibration import calibrate_bundle
from edgert.image.guidance import COND, UNCOND
from edgert.image.request import resolve
from edgert.image.schedules import Run, start
from edgert.session.options import SessionOptions

RESULTS = FOLDER / "results" / "image_peers.jsonl"
QUANTS = ("f32", "int8", "int4")
ENGINES = (
    "torch f32", "torch bf16", "torch f32 compiled", "openvino f32", "openvino int8",
    *(f"edgert {quant}" for quant in QUANTS),
)  # fmt: skip
Line = dict[str, Any]


def interleaved(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, by rounds; a pause before each lets the others' threads park."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds):
        for name in list(runs)[:: 1 if index % 2 == 0 else -1]:
            time.sleep(PAUSE)
            with no_collection():
                begin = time.perf_counter()
                runs[name]()
                spent[name].append(time.perf_counter() - begin)
    return spent


def ratio(spent: dict[str, list[float]], ours: str, other: str) -> float:
    """How many times as fast `ours` is: the median over rounds."""
    return float(np.median(np.array(spent[other]) / np.array(spent[ours])))


def one_shape(
    name: str, folder: Path, threads: int, rounds: int, engines: Sequence[str]
) -> Line:  # fmt: skip
    """Seconds of one evaluation by every engine that can be had, and how far apart outputs are."""
    wanted = [e.split()[1] for e in engines if e.startswith("edgert")]
    bundles = bundles_of(folder, wanted)
    inputs = inputs_of(next(iter(bundles.values())))
    with opened(folder, bundles, inputs, threads, engines) as (found, missing):
        outputs = {e.name: evaluated(e, inputs) for e in found}  # the second one is warm
        watch = Watch()
        spent = interleaved({e.name: lambda e=e: evaluated(e, inputs) for e in found}, rounds)
    first = next(iter(outputs))
    reference = outputs[first]
    size = float(np.linalg.norm(reference))
    rows = {
        engine: {
            "ms": short(1e3 * np.median(times)), "best_ms": short(1e3 * min(times)),
            "rounds_ms": [short(1e3 * t) for t in times],
            "apart": short(np.linalg.norm(outputs[engine] - reference) / size),
        }
        for engine, times in spent.items()
    }  # fmt: skip
    return {
        "kind": "evaluation", "shape": name, "threads": threads, "reference": first, "rows": rows,
        "missing": missing, "run": watch.summary(),
    }  # fmt: skip


def short(value: Any) -> float:
    return float(f"{value:.5g}")


def evaluated(engine: Engine, inputs: Inputs) -> Any:
    return engine.evaluate(inputs.x, inputs.t, inputs.conditions)


# --- whole pictures -------------------------------------------------------------------------------


def fidelity(bundles: dict[str, Path], count: int, threads: int) -> Line:
    """PSNR of pictures against those of f32, from the same noise."""
    pictures: dict[str, list[Any]] = {}
    options: dict[str, Any] = {"threads": threads, "kind": "image"}
    for quant, path in bundles.items():
        with edgert.load(path, **options) as model:
            pictures[quant] = [
                np.asarray(model(p.text, seed=p.seed, cache="none")[0])
                for p in prompts_for(model, "test", count)
            ]
    found = {
        quant: [round(psnr(a, b), 2) for a, b in zip(some, pictures["f32"], strict=True)]
        for quant, some in pictures.items() if quant != "f32"
    }  # fmt: skip
    return {"kind": "fidelity", "pictures": count, "psnr": found}


def whole(folder: Path, bundles: dict[str, Path], threads: int, rounds: int, nfe: float) -> Line:
    """Seconds of the 50 steps of one guided picture; text and decoding are left out on both
    sides. torch computes both branches in one batch."""
    options: dict[str, Any] = {"threads": threads, "kind": "image"}
    runs, models = dict[str, Callable[[], float]](), list[Any]()
    shared: dict[str, Any] = {"seed": 1, "steps": 50, "cfg_scale": 3.0}
    for quant in (q for q in ("f32", "int8") if q in bundles):
        model = edgert.load(bundles[quant], **options)
        if model.table is None or not model.table.info.thresholds:
            model.close()
            calibrate_bundle(bundles[quant], SessionOptions(threads=threads), steps=50)
            model = edgert.load(bundles[quant], **options)
        models.append(model)
        prompt = prompts_for(model, "test", 1)[0].text
        for cache in ("none", "sencache"):
            more = {"nfe": nfe} if cache == "sencache" else {}
            name = f"edgert {quant}" + (f", SenCache {nfe:g}" if more else "")
            runs[name] = partial(model, prompt, cache=cache, **shared, **more)
    runs["torch f32"] = torch_loop(folder, models[0], prompt, threads, shared)
    for run in runs.values():
        run()
    watch = Watch()
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds):
        for name in list(runs)[:: 1 if index % 2 == 0 else -1]:
            time.sleep(PAUSE)
            begin = time.perf_counter()
            got = runs[name]()
            timings = getattr(got, "timings", None)
            spent[name].append(timings["denoise_s"] if timings else time.perf_counter() - begin)
    for model in models:
        model.close()
    rows = {name: {"seconds": round(float(np.median(t)), 3),
                   "torch f32 / this": round(ratio(spent, name, "torch f32"), 3)}
            for name, t in spent.items()}  # fmt: skip
    return {"kind": "picture", "threads": threads, "nfe": nfe, "rows": rows, "run": watch.summary()}


def torch_loop(
    folder: Path, model: Any, prompt: str, threads: int, shared: dict[str, Any]
) -> Callable[[], Any]:  # fmt: skip
    """50 uncached steps in torch, both branches in one batch, padded to the longer caption with a
    mask as in diffusers' pipelines (without their padding to the tokenizer's length)."""
    import torch

    request = resolve(model.spec, model.latents, prompt, dict(shared))
    network, guidance = model.network(request)
    sampler = model.sampler(request)
    shape = (1, model.latents.channels, *request.grid)
    torch.set_num_threads(threads)
    module = torch_module(folder).inner
    given = [condition_of(network.conditions[branch]) for branch in (UNCOND, COND)]
    options: dict[str, Any] = {"return_dict": False}
    if given[0].ndim == 1:
        options["class_labels"] = torch.from_numpy(np.concatenate(given))
    else:
        longest = max(one.shape[1] for one in given)
        rows = [np.pad(one[0], ((0, longest - one.shape[1]), (0, 0))) for one in given]
        mask = np.stack([np.arange(longest) < one.shape[1] for one in given])
        options |= {
            "encoder_hidden_states": torch.from_numpy(np.stack(rows)),
            "encoder_attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }

    def run() -> Any:
        x: Any = start(sampler, shape, Run(request.seeds))
        for k in range(len(sampler)):
            time_of = torch.full((2,), float(sampler.timesteps[k]))
            with torch.inference_mode():
                y = module(torch.from_numpy(np.concatenate([x, x])), timestep=time_of, **options)[0]
            both = guidance.cut(y.numpy())
            x = sampler.step(guidance.combine({UNCOND: both[:1], COND: both[1:]}), k, x)
        return x

    return run


# --- lines and tables -----------------------------------------------------------------------------


def tables(lines: Sequence[Line]) -> str:
    """What was measured, the last line of each kind, shape and thread count."""
    last: dict[tuple[Any, ...], Line] = {}
    for x in lines:
        last[x["machine"]["cpu"], x["kind"], x.get("shape", x.get("folder")), x.get("threads")] = x
    out = []
    for x in last.values():
        noisy = " (noisy)" if x.get("run", {}).get("noisy") else ""
        if x["kind"] == "evaluation":
            best = min(v["ms"] for n, v in x["rows"].items() if not n.startswith("edgert"))
            body: list[list[Any]] = [
                [n, f"{v['ms']:.1f}", f"{v['best_ms']:.1f}",
                 f"{ratios(x, n, x['reference']):.2f}", f"{best / v['ms']:.2f}",
                 f"{v['apart']:.1e}"]
                for n, v in x["rows"].items()
            ]  # fmt: skip
            body += [[n, why] for n, why in x["missing"].items()]
            head = ("program", "ms median", "best", f"times as fast as {x['reference']}",
                    "as the best peer", "apart from it")  # fmt: skip
            said = f"{x['shape']}, one evaluation, {x['threads']} threads{noisy}"
        elif x["kind"] == "picture":
            body = [[n, v["seconds"], v["torch f32 / this"]] for n, v in x["rows"].items()]
            head = ("program", "seconds", "times as fast as torch f32")  # type: ignore[assignment]
            said = f"{x['folder']}, 50 guided steps, {x['threads']} threads{noisy}"
        else:
            body = [[q, f"{np.mean(v):.2f}", f"{np.median(v):.2f}", min(v)]
                    for q, v in x["psnr"].items()]  # fmt: skip
            head = ("weights", "PSNR mean", "median", "least")  # type: ignore[assignment]
            said = f"{x['folder']}, {x['pictures']} pictures against f32"
        out.append(f"**{said}**\n\n{table(head, body)}")
    return "\n\n".join(out)


def ratios(line: Line, ours: str, other: str) -> float:
    return ratio({n: v["rounds_ms"] for n, v in line["rows"].items()}, ours, other)


def append(line: Line, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "a", encoding="utf-8") as file:
        file.write(json.dumps({**line, "machine": describe()}, separators=(",", ":")) + "\n")
    print(tables([{**line, "machine": {"cpu": ""}}]), end="\n\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path)
    parser.add_argument("--shapes", nargs="*", default=["dit-s"], help="dit-s, dit-xl")
    parser.add_argument("--demo", type=Path, help="folder of a trained pipeline")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15, help="dit-xl has a fifth, at least 3")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument("--pictures", type=int, default=16, help="of the PSNR; 0 for none")
    parser.add_argument("--nfe", type=float, default=25)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--print", action="store_true", dest="only_print")
    args = parser.parse_args()
    if args.only_print:
        return print(tables([json.loads(x) for x in args.out.read_text("utf-8").splitlines()]))
    if args.models is None:
        parser.error("--models says where folders and bundles are kept")
    folders = {shape: random_pipeline(shape, args.models / shape) for shape in args.shapes}
    if args.demo is not None:
        folders["demo"] = copied(args.demo, args.models / "demo")
    for name, folder in folders.items():
        for threads in args.threads:
            rounds = max(3, args.rounds // 5) if name == "dit-xl" else args.rounds
            append(one_shape(name, folder, threads, rounds, args.engines), args.out)
    if args.demo is not None:
        bundles = bundles_of(folders["demo"], QUANTS)
        for threads in args.threads:
            line = whole(folders["demo"], bundles, threads, 3, args.nfe)
            append({**line, "folder": "demo"}, args.out)
        if args.pictures:
            line = fidelity(bundles, args.pictures, max(args.threads))
            append({**line, "folder": "demo"}, args.out)


def copied(source: Path, target: Path) -> Path:
    """A link to the trained folder, beside which its bundles may be written."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source.resolve(), target_is_directory=True)
    return target


if __name__ == "__main__":
    main()
