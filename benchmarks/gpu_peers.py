"""edgert on onnxruntime against transformers and onnxruntime-genai, on a GPU.

    python -m benchmarks.gpu_peers --shapes 1.1b 0.5b --bundle demo.edge --out results.jsonl

Per model: decode tokens a second after a prompt of 128, prefill tokens a second of a prompt of 512,
and the share of the copy bandwidth measured in the same run that decoding reads. Rows: edgert int4
and f16, with and without CUDA graphs; transformers float16, eager and compiled with a static cache,
prepared in processes of their own and measured when nothing else runs; onnxruntime-genai int4, if
it is installed. No speed of edgert is printed unless its greedy tokens are its CPU session's, or
part where the top two logits are closer than the measured difference. Weights of the shapes are
random (`random_bundle`).

`--golden FOLDER` keeps the CPU session's answers, for machines where that session cannot run: fill
it with `--golden-only` on one where it can. `--device ort-cpu --shapes tiny` runs everything
without a GPU. Rows and complaints go to `--out` as they come.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from edgert.converters.onnx_emit import export

from benchmarks import gpu_edgert as own
from benchmarks.gpu_torch import Peer
from benchmarks.make_checkpoint import make_checkpoint
from benchmarks.random_bundle import random_bundle
from edgert.bundle import Bundle
from edgert.session import SessionOptions, open_session
from edgert.session.ort_choice import emitted

FPA = "ep.cuda.fpa_intb_gemm=1"  # the weight-only kernels of onnxruntime that repack at load
PEER_SECONDS = 20.0  # for measuring a prepared peer
DEMO = "edgert-demo"  # the bundled model: the peer of its shape is called demo


class Log:
    """Rows and complaints, printed and written as they come."""

    def __init__(self, out: Path | None, deadline: float) -> None:
        self.start = time.monotonic()
        self.end = self.start + deadline
        self.rows: list[dict[str, Any]] = []
        self.out = out
        if out:
            out.write_text("", encoding="utf-8")

    @property
    def spent(self) -> bool:
        return time.monotonic() > self.end

    def note(self, kind: str, **values: Any) -> None:
        """One line: what, when (seconds since the start), values."""
        line = {"at": round(time.monotonic() - self.start, 2), "kind": kind, **values}
        text = json.dumps(line)
        print(text, flush=True)
        if kind == "row":
            self.rows.append(values)
        if self.out:
            with self.out.open("a", encoding="utf-8") as file:
                file.write(text + "\n")


def main() -> None:
    args = arguments()
    log = Log(args.out, args.deadline)
    cuda = args.device == "cuda"
    log.note("machine", **own.machine(args.device))
    with folder_or_temporary(args.work) as work:
        if args.golden_only:
            for name, bundle in bundles(args, work, log):
                with Bundle.open(bundle) as opened:
                    own.golden_of(opened, name, args.golden)
            return
        peers = {}
        if not args.no_peers:
            names = [*args.shapes, *(["demo"] if DEMO in map(stem, args.bundle) else [])]
            peers = {n: Peer(n, work / "peers", "cuda" if cuda else "cpu") for n in names}
        try:
            compare(args, work, log, peers)
        finally:
            for peer in peers.values():
                peer.close()
    print(table(log.rows))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", default=["1.1b", "0.5b"])
    parser.add_argument("--bundle", type=Path, nargs="*", default=[])
    parser.add_argument("--quants", nargs="*", default=["int4", "f16"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--work", type=Path, help="folder for bundles and peers")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--golden", type=Path)
    parser.add_argument("--golden-only", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument(
        "--deadline", type=float, default=3600, help="begin nothing after (seconds)"
    )
    parser.add_argument(
        "--patience", type=float, default=600, help="for peers to compile (seconds)"
    )
    return parser.parse_args()


def stem(path: Path) -> str:
    return path.stem


@contextmanager
def folder_or_temporary(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def bundles(args: argparse.Namespace, work: Path, log: Log) -> Iterator[tuple[str, Path]]:
    """Name and place of every model, most important first, made when it is its turn."""
    for bundle in args.bundle:
        copy = work / bundle.name  # export writes into it
        if not copy.exists():
            shutil.copytree(bundle, copy)
        yield stem(bundle), copy
    for quant in args.quants:
        for shape in args.shapes:
            out = work / f"{shape}-{quant}.edge"
            if not log.spent and not (out / "manifest.json").exists():
                random_bundle(shape, out, quant)
            if out.exists():
                yield f"{shape} {quant}", out


def compare(args: argparse.Namespace, work: Path, log: Log, peers: dict[str, Peer]) -> None:
    """Check every model first; when the peers are prepared, measure one after the other."""
    cuda = args.device == "cuda"
    if cuda:  # also loads the CUDA libraries of torch, which onnxruntime then finds
        with guarded(log, "copy bandwidth"):
            log.note("copy", gbps=round(own.copy_bandwidth(), 1), alone=False)
    models = []
    for name, bundle in bundles(args, work, log):
        if log.spent:
            break
        with guarded(log, f"{name}: export"):
            prepared(bundle, half=cuda)
            models.append((name, bundle))
            if bundle in [work / given.name for given in args.bundle]:
                checked(name, bundle, args, log, graph=cuda)
    until = min(log.start + args.patience, log.end)
    for shape, peer in peers.items():
        log.note("peer", shape=shape, ready=peer.wait(until), ended=peer.over)
    for peer in peers.values():
        peer.pause(stopped=True)
    copy = None
    if cuda:
        copy = own.copy_bandwidth()
        log.note("copy", gbps=round(copy, 1), alone=True)
    for name, bundle in [*models[len(args.bundle) :], *models[: len(args.bundle)]]:
        measure(name, bundle, args, log, copy)
        shape, _, quant = ("demo", "", args.quants[0]) if name == DEMO else name.partition(" ")
        if quant == args.quants[0] and shape in peers:
            measure_peer(shape, peers[shape], log)
        if quant == "int4" and cuda and not log.spent and find_spec("onnxruntime_genai"):
            with guarded(log, f"{shape}: onnxruntime-genai"):
                log.note("row", model=name, **genai_row(shape, work))


@contextmanager
def guarded(log: Log, what: str) -> Iterator[None]:
    """One step's failure is written down and does not end the others."""
    try:
        yield
    except Exception as error:
        log.note("failed", what=what, error=f"{type(error).__name__}: {error}"[:1500])


def prepared(bundle: Path, *, half: bool) -> None:
    """The ONNX model that the device wants, emitted unless it is there."""
    with Bundle.open(bundle) as opened:
        here = [v for v in emitted(opened) if v.half == half and not v.standard]
    if not here:
        export(bundle, precision="f16" if half else "f32")


def devices(device: str, name: str) -> list[str]:
    """The ways to run a model, the most telling first."""
    if device != "cuda":
        return [device]
    repacked = [] if name.endswith(" f16") else [f"cuda:graph,{FPA}"]
    return ["cuda:graph", *repacked, "cuda"]


def checked(name: str, bundle: Path, args: argparse.Namespace, log: Log, *, graph: bool) -> None:
    """Placement and agreement of one model, without timing it."""
    device = f"{args.device}:graph" if graph else args.device
    with Bundle.open(bundle) as opened:
        session = open_session(opened, SessionOptions(device=device))
        note = own.agreement(session, own.golden_of(opened, name, args.golden))
        log.note("checked", model=name, device=device, nodes=own.nodes(session), note=note)
        session.close()


def measure(
    name: str, bundle: Path, args: argparse.Namespace, log: Log, copy: float | None
) -> None:
    """edgert's rows of one model; with nodes on the CPU only if it cannot run without."""
    before = len(log.rows)
    for device in devices(args.device, name):
        if not log.spent:
            with guarded(log, f"{name} on {device}"):
                measure_on(device, name, bundle, args, log, copy)
    if len(log.rows) == before and args.device == "cuda" and not log.spent:
        with guarded(log, f"{name} with nodes on the CPU"):
            measure_on("cuda:allow-cpu-nodes", name, bundle, args, log, copy)


def measure_on(
    device: str, name: str, bundle: Path, args: argparse.Namespace, log: Log, copy: float | None
) -> None:
    """One of those rows."""
    with Bundle.open(bundle) as opened:
        start = time.monotonic()
        session = open_session(opened, SessionOptions(device=device))
        log.note("loaded", model=name, seconds=round(time.monotonic() - start, 2))
        try:
            row = measured(session, own.golden_of(opened, name, args.golden), copy)
        finally:
            session.close()
        log.note("row", model=name, runner=f"edgert {device}", **row)


def measured(session: Any, golden: own.Golden, copy: float | None) -> dict[str, Any]:
    """One row, if the session is right."""
    note = f"{own.nodes(session)}; {own.agreement(session, golden)}"
    row: dict[str, Any] = own.speeds(session)
    middle = own.PROMPT + own.DECODE * 5 // 8  # of the steps that count
    row["read_gbps"] = own.read_bytes(session, middle) * row["decode_tps"] / 1e9
    row["share"] = row["read_gbps"] / copy if copy else None
    return {**row, "note": note}


def measure_peer(shape: str, peer: Peer, log: Log) -> None:
    """Rows of a prepared peer; one that is not ready gets the rest of its time."""
    with guarded(log, f"{shape}: transformers"):
        peer.pause(stopped=False)
        if not peer.wait(min(log.end, time.monotonic() + PEER_SECONDS)):
            log.note("peer", shape=shape, ready=False, said=peer.complaint())
            peer.pause(stopped=True)
            return
        for row in peer.measure(time.monotonic() + PEER_SECONDS):
            log.note("row", model=f"{shape} f16", **row)
        log.note("peer", shape=shape, said=peer.complaint())


def genai_row(shape: str, work: Path) -> dict[str, Any]:
    """onnxruntime-genai's own int4 build of a random checkpoint of the shape."""
    import onnxruntime_genai as genai
    from onnxruntime_genai.models.builder import create_model

    checkpoint, folder = work / shape, work / f"{shape}-genai"
    if not folder.exists():
        make_checkpoint(shape, checkpoint, dtype="f16")
        create_model("", str(checkpoint), str(folder), "int4", "cuda", str(folder / "cache"))
    model = genai.Model(str(folder))
    rng = np.random.default_rng(0)

    def generator(count: int) -> Any:
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=count + own.DECODE + 8, do_sample=False)
        made = genai.Generator(model, params)
        made.append_tokens(rng.integers(3, 1000, count).astype(np.int32))
        return made

    running, seconds = generator(own.PROMPT), []
    for _ in range(own.DECODE):
        start = time.perf_counter()
        running.generate_next_token()
        seconds.append(time.perf_counter() - start)
    decode = 1 / float(np.median(seconds[own.DECODE // 4 :]))
    prefill = own.PREFILL / own.timed(lambda: generator(own.PREFILL).generate_next_token())
    return {"runner": "onnxruntime-genai", "decode_tps": decode, "prefill_tps": prefill}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| Model | Runner | Decode tok/s | Prefill tok/s | Reads GB/s | Of copy | Note |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        read = f"{row['read_gbps']:.1f}" if row.get("read_gbps") else ""
        share = f"{row['share']:.0%}" if row.get("share") else ""
        speeds = f"{row['decode_tps']:.1f} | {row['prefill_tps']:.0f}"
        words = row["model"], row["runner"], speeds, read, share, row.get("note", "")
        lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
