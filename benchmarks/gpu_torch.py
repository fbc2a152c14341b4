"""transformers on a GPU, in a process of its own: it prepares, waits for its turn, then measures.

Loading and compiling take most of a minute. A child does both while the parent does something that
is not timed, reports `<shape>.ready`, and is measured alone after the parent wrote `<shape>.go`.
Weights are random, float16; the cache is a StaticCache. "compiled" is
torch.compile(mode="reduce-overhead") of one-token steps, as `generate` does it: the prompt is read
by the uncompiled model in both rows.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.make_checkpoint import config_of

PROMPT, PREFILL, DECODE, EAGER, REPEATS = 128, 512, 128, 40, 5


def config(shape: str) -> dict[str, Any]:
    """config.json of a shape of `make_checkpoint`, or of the bundled model ("demo")."""
    if shape != "demo":
        return config_of(shape, "f16")
    from recipes.demo_text.export import hf_config
    from recipes.demo_text.model import ModelConfig

    return hf_config(ModelConfig())


class Peer:
    """The parent's handle on one child."""

    def __init__(self, shape: str, folder: Path, device: str) -> None:
        self.shape, self.folder = shape, folder
        folder.mkdir(parents=True, exist_ok=True)
        for ending in ("ready", "go", "jsonl"):
            self._file(ending).unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.gpu_torch", shape, str(folder)]
        self.log = self._file("log").open("w", encoding="utf-8")
        self.process = subprocess.Popen(
            [*command, "--device", device], stdout=self.log, stderr=subprocess.STDOUT
        )

    def _file(self, ending: str) -> Path:
        return self.folder / f"{self.shape}.{ending}"

    @property
    def ready(self) -> bool:
        return self._file("ready").exists()

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def wait(self, until: float) -> bool:
        """Whether it is ready, at the latest at `until` (time.monotonic)."""
        while not self.ready and not self.over and time.monotonic() < until:
            time.sleep(0.1)
        return self.ready

    def pause(self, *, stopped: bool) -> None:
        """Hold a child that is not ready while others are timed, or let it go on."""
        if not self.over and not self.ready:
            self.process.send_signal(signal.SIGSTOP if stopped else signal.SIGCONT)

    def measure(self, until: float) -> list[dict[str, Any]]:
        """Its rows: runner, decode_tps, prefill_tps. Those that it had at `until`, if it hangs."""
        self._file("go").touch()
        while not self.over and time.monotonic() < until:
            time.sleep(0.05)
        self.close()
        rows = self._file("jsonl")
        text = rows.read_text(encoding="utf-8") if rows.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def close(self) -> None:
        """End the child, whatever it does."""
        if not self.over:
            self.process.kill()
        self.process.wait()
        self.log.close()

    def complaint(self) -> str:
        """The end of what it printed."""
        return self._file("log").read_text(encoding="utf-8", errors="replace")[-600:]


class Model:
    """A random model of a shape with a prompt in its cache."""

    def __init__(self, shape: str, device: str) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

        self.device = device
        values = config(shape)
        made = AutoConfig.for_model(values.pop("model_type"), **values)
        kind = torch.float16 if device == "cuda" else torch.float32
        with torch.device(device):
            self.model = AutoModelForCausalLM.from_config(made, dtype=kind).eval()
        size = PROMPT + DECODE + 16
        self.cache = StaticCache(config=self.model.config, max_cache_len=size)
        self.takes_place = "cache_position" in inspect.signature(self.model.forward).parameters
        self.sync: Callable[[], Any] = torch.cuda.synchronize if device == "cuda" else lambda: None
        self.token = torch.full((1, 1), 3, device=device)
        self.position = torch.tensor([PROMPT], device=device)

    def restart(self) -> None:
        """The cache with a prompt of PROMPT tokens and nothing else. It stays the same object: a
        compiled step is bound to its buffers."""
        import torch

        self.cache.reset()
        ids = torch.randint(3, 500, (1, PROMPT), device=self.device)
        place = torch.arange(PROMPT, device=self.device)
        self.model(ids, **self._where(place))
        self.position.fill_(PROMPT)

    def _where(self, place: Any) -> dict[str, Any]:
        known = {"cache_position": place} if self.takes_place else {}
        more = {"past_key_values": self.cache, "use_cache": True, "logits_to_keep": 1}
        return {"position_ids": place[None], **known, **more}

    def decode(self, step: Callable[..., Any], count: int) -> list[float]:
        """Seconds of each of `count` greedy one-token steps."""
        seconds = []
        for _ in range(count):
            self.sync()
            start = time.perf_counter()
            out = step(self.token, **self._where(self.position))
            self.token.copy_(out.logits[:, -1:].argmax(-1))
            self.position += 1
            self.sync()
            seconds.append(time.perf_counter() - start)
        return seconds

    def prefill(self) -> float:
        """Prompt tokens a second, without a cache."""
        import torch

        ids = torch.randint(3, 500, (1, PREFILL), device=self.device)
        found = []
        for _ in range(REPEATS + 1):
            self.sync()
            start = time.perf_counter()
            self.model(ids, use_cache=False, logits_to_keep=1)
            self.sync()
            found.append(time.perf_counter() - start)
        return PREFILL / statistics.median(found[1:])


def child(shape: str, folder: Path, device: str) -> None:
    """Prepare, wait for the word, measure; rows go to a file as they come."""
    import torch

    with torch.inference_mode():
        model = Model(shape, device)
        model.restart()
        model.decode(model.model.forward, 2)
        steps = {"eager": (model.model.forward, EAGER)}
        try:
            mode = "reduce-overhead" if device == "cuda" else "default"
            compiled = torch.compile(model.model.forward, mode=mode)
            model.restart()
            model.decode(compiled, 4)
            steps = {"compiled": (compiled, DECODE), **steps}
        except Exception as error:  # the eager row must not be lost with it
            print(f"not compiled: {error}", flush=True)
        (folder / f"{shape}.ready").touch()
        while not (folder / f"{shape}.go").exists():
            if os.getppid() == 1:
                return
            time.sleep(0.02)
        for name, (step, count) in steps.items():
            model.restart()
            seconds = model.decode(step, count)[count // 4 :]
            row = {"runner": f"transformers {name}", "decode_tps": 1 / statistics.median(seconds)}
            row["prefill_tps"] = model.prefill()
            with (folder / f"{shape}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    child(args.shape, args.folder, args.device)


if __name__ == "__main__":
    main()
