"""edgert on onnxruntime against transformers and onnxruntime-genai, on a GPU.

    python -m benchmarks.gpu_peers --shapes 0.5b 1.1b --bundle demo.edge --out results.jsonl

Per model: decode tokens a second after a prompt of 128, prefill tokens a second of a prompt of 512,
and the share of the copy bandwidth measured in the same run that decoding reads. Rows: edgert int4
and f16, each with and without CUDA graphs; transformers float16, eager and compiled with a static
cache; onnxruntime-genai int4 where it is installed. Nothing is printed for edgert unless its greedy
tokens agree with its CPU session's, or part where the top two logits are closer than the measured
difference. Weights of the shapes are random.

`--device ort-cpu --shapes tiny` runs the edgert half anywhere.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from edgert.converters.convert import convert
from edgert.converters.onnx_emit import export

from benchmarks.make_checkpoint import make_checkpoint
from edgert.bench import bytes_per_token
from edgert.bundle import Bundle
from edgert.errors import EdgertError
from edgert.session import open_session
from edgert.session.base import Feed, Session
from edgert.session.ort import place

LOGITS_APART = 0.1
PROMPT, PREFILL, DECODE, CHECK, REPEATS = 128, 512, 128, 64, 5


@dataclass
class Line:
    """One row of the table. Bandwidths in 10^9 bytes a second."""

    model: str
    runner: str
    decode_tps: float
    prefill_tps: float
    read_gbps: float | None = None
    share: float | None = None
    note: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", default=["0.5b", "1.1b"])
    parser.add_argument("--bundle", type=Path, nargs="*", default=[], help="with f16 ONNX inside")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--work", type=Path, help="folder for checkpoints and bundles")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--no-peers", action="store_true")
    args = parser.parse_args()
    cuda = args.device.startswith("cuda")
    copy = copy_bandwidth() if cuda else None
    if copy:
        print(f"copy bandwidth {copy:.0f} GB/s")
    lines: list[Line] = []
    with folder_or_temporary(args.work) as work:
        for bundle in args.bundle:
            lines += list(edgert_lines(bundle.stem, bundle, args.device, copy))
        for shape in args.shapes:
            checkpoint = work / shape
            if not (checkpoint / "config.json").exists():
                make_checkpoint(shape, checkpoint, dtype="f16")
            for quant in ("int4", "f16"):
                bundle = converted(checkpoint, work, quant, half=cuda)
                lines += list(edgert_lines(f"{shape} {quant}", bundle, args.device, copy))
            if cuda and not args.no_peers:
                lines += list(peer_lines(shape, checkpoint, work))
    print(table(lines))
    if args.out:
        text = "".join(json.dumps(asdict(line)) + "\n" for line in lines)
        args.out.write_text(text, encoding="utf-8")


@contextmanager
def folder_or_temporary(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def converted(checkpoint: Path, work: Path, quant: str, *, half: bool) -> Path:
    """A bundle with its ONNX model, made once."""
    out = work / f"{checkpoint.name}-{quant}.edge"
    if not out.exists():
        convert(checkpoint, out, quant=quant, golden=False, progress=False)
        export(out, precision="f16" if half else "f32")
    return out


def copy_bandwidth() -> float:
    """Bytes read and written a second by copies of 1 GiB on the GPU, in 10^9."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), torch.cuda.synchronize)
    return 2 * source.numel() / seconds / 1e9


def timed(work: Callable[[], Any], done: Callable[[], Any] = lambda: None) -> float:
    """Median seconds of a call, after one that does not count."""
    work()
    done()
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        done()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def edgert_lines(model: str, bundle: Path, device: str, copy: float | None) -> Iterator[Line]:
    """edgert's rows, each only if its tokens are right."""
    graphs = (device, f"{device}:graph") if device == "cuda" else (device,)
    with Bundle.open(bundle) as opened:
        where = {node.provider for node in place(opened, device)}
        for name in graphs:
            try:
                session = open_session(opened, device=name)
                note = agreement(opened, session)
            except EdgertError as error:
                print(f"{model} {name}: {error}")
                continue
            line = measured(model, f"edgert {name}", session)
            line.note = f"{note}; nodes on {', '.join(sorted(where))}"
            line.share = line.read_gbps / copy if copy and line.read_gbps else None
            session.close()
            yield line


def agreement(opened: Bundle, session: Session) -> str:
    """How long the session's greedy tokens equal the CPU session's; EdgertError when they part
    without being close, or when the logits up to there are not the same model's."""
    cpu = open_session(opened, device="cpu")
    tokens, logits = greedy(cpu, CHECK)
    found, other = greedy(session, CHECK)
    cpu.close()
    same = next((i for i in range(CHECK) if tokens[i] != found[i]), CHECK)
    a, b = (np.array(kept[: same + 1], np.float64) for kept in (logits, other))
    apart = float(np.sqrt(((a - b) ** 2).mean() / (a**2).mean()))
    if apart > LOGITS_APART:
        raise EdgertError(f"logits differ by {apart:.3f} relative RMS, the limit is {LOGITS_APART}")
    if same < CHECK:
        gap = float(np.diff(np.sort(logits[same])[-2:])[0])
        difference = float(np.abs(logits[same] - other[same]).max())
        if gap > 2 * difference:
            raise EdgertError(
                f"token {same} differs: top-2 gap {gap:.4f}, logits differ by {difference:.4f}"
            )
        return f"{same} tokens as on the CPU, then a gap of {gap:.4f} below {difference:.4f}"
    return f"{CHECK} tokens as on the CPU"


def greedy(session: Session, count: int) -> tuple[list[int], list[Any]]:
    """Greedy tokens after a fixed prompt, and the logits they were chosen from."""
    state = session.new_state(PROMPT + count)
    feed, tokens, kept = prompt(session, 16), [], []
    for _ in range(count):
        logits = session.step([Feed(state, feed)])[0][-1]
        state.commit(len(feed))
        tokens.append(int(np.argmax(logits)))
        kept.append(logits)
        feed = np.array(tokens[-1:], np.int32)
    state.close()
    return tokens, kept


def prompt(session: Session, count: int) -> Any:
    rng = np.random.default_rng(0)
    return rng.integers(3, session.graph.vocab_size, count).astype(np.int32)


def measured(model: str, runner: str, session: Session) -> Line:
    """Decode and prefill speed of one of our sessions."""
    state = session.new_state(PROMPT + DECODE)
    session.step([Feed(state, prompt(session, PROMPT))])
    state.commit(PROMPT)
    token, seconds = prompt(session, 1), []
    for index in range(DECODE):
        start = time.perf_counter()
        session.step([Feed(state, token)])
        state.commit(1)
        if index >= DECODE // 4:  # the first ones capture graphs and grow buffers
            seconds.append(time.perf_counter() - start)
    decode = 1 / statistics.median(seconds)
    read = bytes_per_token(session.graph, state) * decode / 1e9
    state.close()
    long = min(PREFILL, session.context - 1, session.max_rows)

    def prefill() -> None:
        fresh = session.new_state(long)
        session.step([Feed(fresh, prompt(session, long))])
        fresh.close()

    return Line(model, runner, decode, long / timed(prefill), read)


def peer_lines(shape: str, checkpoint: Path, work: Path) -> Iterator[Line]:
    """transformers, and onnxruntime-genai where it is installed."""
    for compiled in (False, True):
        yield transformers_line(shape, checkpoint, compiled=compiled)
        free()
    if find_spec("onnxruntime_genai") is None:
        print("onnxruntime-genai is not installed; its rows are left out")
        return
    yield genai_line(shape, checkpoint, work / f"{shape}-genai")


def free() -> None:
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def transformers_line(shape: str, checkpoint: Path, *, compiled: bool) -> Line:
    """float16 with a static cache; compiled is torch.compile(mode="reduce-overhead")."""
    import torch
    from transformers import AutoModelForCausalLM, StaticCache

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float16).cuda().eval()
    size = PROMPT + DECODE + 8
    step: Callable[..., Any] = model.forward
    if compiled:
        step = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    cache = StaticCache(config=model.config, max_cache_len=size)
    ids = torch.randint(3, model.config.vocab_size, (1, PROMPT), device="cuda")
    place_of = torch.arange(PROMPT, device="cuda")
    seconds = []
    with torch.inference_mode():
        model(ids, past_key_values=cache, cache_position=place_of, use_cache=True)
        token, position = ids[:, :1].clone(), torch.tensor([PROMPT], device="cuda")
        for index in range(DECODE):
            torch.cuda.synchronize()
            start = time.perf_counter()
            out = step(token, past_key_values=cache, cache_position=position, use_cache=True)
            token.copy_(out.logits[:, -1:].argmax(-1))
            position += 1
            torch.cuda.synchronize()
            if index >= DECODE // 4:
                seconds.append(time.perf_counter() - start)
        long = torch.randint(3, model.config.vocab_size, (1, PREFILL), device="cuda")
        prefill = timed(
            lambda: model(long, use_cache=False, logits_to_keep=1), torch.cuda.synchronize
        )
    kind = "compiled" if compiled else "eager"
    decode = 1 / statistics.median(seconds)
    return Line(f"{shape} f16", f"transformers {kind}", decode, PREFILL / prefill)


def genai_line(shape: str, checkpoint: Path, folder: Path) -> Line:
    """onnxruntime-genai's own int4 build of the same checkpoint."""
    import onnxruntime_genai as genai
    from onnxruntime_genai.models.builder import create_model

    if not folder.exists():
        create_model("", str(checkpoint), str(folder), "int4", "cuda", str(folder / "cache"))
    model = genai.Model(str(folder))
    rng = np.random.default_rng(0)

    def generator(count: int) -> Any:
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=count + DECODE + 8, do_sample=False)
        made = genai.Generator(model, params)
        made.append_tokens(rng.integers(3, 1000, count).astype(np.int32))
        return made

    running, seconds = generator(PROMPT), []
    for index in range(DECODE):
        start = time.perf_counter()
        running.generate_next_token()
        if index >= DECODE // 4:
            seconds.append(time.perf_counter() - start)
    prefill = timed(lambda: generator(PREFILL).generate_next_token())
    decode = 1 / statistics.median(seconds)
    return Line(f"{shape} int4", "onnxruntime-genai", decode, PREFILL / prefill)


def table(lines: list[Line]) -> str:
    """The rows as a Markdown table."""
    rows = ["| Model | Runner | Decode tok/s | Prefill tok/s | Reads GB/s | Of copy | Note |"]
    rows.append("|---|---|---|---|---|---|---|")
    for line in lines:
        read = f"{line.read_gbps:.1f}" if line.read_gbps else ""
        share = f"{line.share:.0%}" if line.share else ""
        speeds = f"{line.decode_tps:.1f} | {line.prefill_tps:.0f}"
        rows.append(f"| {line.model} | {line.runner} | {speeds} | {read} | {share} | {line.note} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
