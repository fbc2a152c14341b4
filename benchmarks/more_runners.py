"""Peers beyond llama.cpp, each optional: onnxruntime's MatMulNBits, torch with dense weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgert.converters.onnx_emit import export

from benchmarks.runners import Ids, Logits, Runner, SessionRunner
from edgert.bundle import Bundle


def with_onnx(bundle: Path, work: Path) -> Path:
    """A copy of the bundle that also holds its ONNX emission; the bundle itself stays untouched."""
    with Bundle.open(bundle) as opened:
        if "model.onnx" in opened.manifest.files:
            return bundle
    target = work / f"{bundle.stem}-onnx.edge"
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(bundle, target)
    export(target)
    return target


def ort_runner(bundle: Path, threads: Sequence[int], *, context: int) -> SessionRunner:
    """onnxruntime on the CPU: MatMulNBits with int8 activations, GroupQueryAttention, float32.

    Its sequences cannot be moved between sessions: a change of threads starts an empty one.
    """
    with Bundle.open(bundle) as opened:
        return OrtRunner(opened, threads, context=context, device="ort-cpu", name="onnxruntime")


class OrtRunner(SessionRunner):
    """As SessionRunner, with an empty sequence after a change of threads."""

    def use(self, threads: int) -> None:
        if threads != self.current:
            self.states.pop(self.current).close()
            self.current = threads
            self.states[threads] = self.session.new_state(self.expected)


class TorchRunner(Runner):
    """transformers on the CPU, dense weights of the checkpoint: a note, not the same bits."""

    def __init__(self, checkpoint: Path, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, DynamicCache

        self.torch, self.cache_class = torch, DynamicCache
        self.name = f"torch {dtype}"
        kind = {"bf16": torch.bfloat16, "f32": torch.float32}[dtype]
        self.model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=kind).eval()
        self.cache: Any = DynamicCache()

    def use(self, threads: int) -> None:
        self.torch.set_num_threads(threads)

    def step(self, tokens: Ids, *, every: bool = False) -> Logits:
        with self.torch.inference_mode():
            ids = self.torch.from_numpy(tokens.astype(np.int64))[None]
            found = self.model(
                input_ids=ids, past_key_values=self.cache, use_cache=True,
                logits_to_keep=0 if every else 1,
            )  # fmt: skip
        logits: Logits = found.logits[0].float().numpy()
        return logits

    def trim(self, length: int) -> None:
        if length == 0:
            self.cache = self.cache_class()
        else:
            self.cache.crop(length)

    def close(self) -> None:
        self.model = self.cache = None
