"""llama.cpp's own quantizations of a checkpoint, for `benchmarks.compression`: made by
`llama_model_quantize` from an exact float32 GGUF, judged on the same token ids.

`NAME imatrix` gives it an importance matrix: the mean square of each product's inputs on the same
calibration text, which is what llama.cpp's own tool collects. Where a row is no multiple of 256
weights llama.cpp takes another type for that matrix; the types are listed with each row.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgert.converters.compress.whiten import Gram
from gguf import GGUFReader

from benchmarks.compression_model import Model
from benchmarks.gguf_copy import write_gguf
from benchmarks.runners import LlamaRunner
from edgert.evaluation.scoring import Request, Score, token_logprobs

TYPES = (
    "Q2_K", "Q2_K_S", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M",
    "Q6_K", "Q8_0", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M",
    "IQ4_XS", "IQ4_NL",
)  # fmt: skip
BATCH = 512


def exact_gguf(model: Model, work: Path) -> Path:
    """The checkpoint's weights in float32, written once."""
    path = work / f"{model.name}-f32.gguf"
    if not path.exists():
        aside = path.with_suffix(".partial")
        write_gguf(model.graph, dict(model.weights), aside)
        aside.rename(path)
    return path


def importance(model: Model, grams: Mapping[str, Gram]) -> dict[str, np.ndarray]:
    """Mean squares of inputs by tensor name of the GGUF, float32."""
    found: dict[str, np.ndarray] = {}
    tensors = {"attention": ("attn_q", "attn_k", "attn_v"), "glu": ("ffn_gate", "ffn_up")}
    users = {node.inputs[0]: node.op for node in model.graph.nodes}
    made = {node.output: node for node in model.graph.nodes}
    layer = 0
    for node in model.graph.nodes:
        if node.op != "linear" or node.weights["weight"] not in model.inputs:
            continue
        value = node.inputs[0]
        down = made[value].op == "glu"
        names = tensors.get(users.get(node.output, ""), ("ffn_down",) if down else ("attn_output",))
        size = (grams[value].matrix.diagonal() / grams[value].rows).astype(np.float32)
        found |= {f"blk.{layer}.{name}.weight": size for name in names}
        layer += down
    return found


def quantize(source: Path, target: Path, kind: str, weights: Mapping[str, np.ndarray]) -> float:
    """Write `target`; CPU seconds. Raises RuntimeError where llama.cpp refuses."""
    import llama_cpp

    from benchmarks.runners import _captured_log

    log = _captured_log()
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = 1
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    kept = [np.ascontiguousarray(row, np.float32) for row in weights.values()]
    rows = (llama_cpp.llama_model_imatrix_data * (len(kept) + 1))()
    for place, (name, data) in enumerate(zip(weights, kept, strict=True)):
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        rows[place] = llama_cpp.llama_model_imatrix_data(name.encode(), pointer, len(data))
    if kept:
        params.imatrix = ctypes.cast(rows, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    start = time.process_time()
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    if status:
        said = [line.strip() for line in "".join(log).splitlines() if "requires" in line]
        raise RuntimeError((said or [f"llama_model_quantize returned {status}"])[-1])
    return time.process_time() - start


def facts_of(path: Path) -> dict[str, Any]:
    """Bits of the block matrices, bytes of the embedding and of the file, and how many matrices
    have which type."""
    bits, embed, types = 0, 0, dict[str, int]()
    for tensor in GGUFReader(path).tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            bits += 8 * int(tensor.n_bytes)
            kind = tensor.tensor_type.name
            types[kind] = types.get(kind, 0) + 1
        elif tensor.name in ("token_embd.weight", "output.weight"):
            embed += int(tensor.n_bytes)
    return {
        "bits": bits, "embed_bytes": embed, "file_bytes": path.stat().st_size, "types": types
    }  # fmt: skip


class LlamaScorer:
    """Scores requests on a GGUF, one after the other."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        self.runner = LlamaRunner(path, threads, context=context, batch=BATCH)

    def score(self, requests: Sequence[Request]) -> list[Score]:
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Score:
        ids = np.array(request.context + request.continuation[:-1], np.int32)
        self.runner.trim(0)
        logits = np.array(self.runner.step(ids, every=True))[-len(request.continuation) :]
        found, best = token_logprobs(logits, request.continuation)
        return Score(float(found.sum()), bool(best.all()))

    def close(self) -> None:
        self.runner.close()
