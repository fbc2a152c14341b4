"""Peak memory of making an onnxruntime session for the shape of a 0.5B model in int4."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from edgert.converters import families
from edgert.converters.onnx_emit import write

from edgert.bundle.check import tensors_of
from edgert.graph import Graph, Weight
from edgert.storage.safetensors_writer import TensorWriter, aligned_order

CONFIG = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "max_position_embeddings": 32768, "tie_word_embeddings": True,
    "hidden_act": "silu",
}  # fmt: skip
PROGRAM = """
import json, sys
from pathlib import Path
from edgert.graph import Graph
from edgert.session import providers
from edgert.session.onnx_check import check_model
from edgert.session.onnx_io import PLAIN
import numpy, onnxruntime

def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if "VmHWM" in line)

folder = Path(sys.argv[1])
graph = Graph.from_json((folder / "model.graph.json").read_bytes())
before = peak()
check_model(folder / "model.onnx", graph, PLAIN)
session = providers.create_session(folder / "model.onnx", providers.DEVICES["ort-cpu"], threads=1)
print(json.dumps(peak() - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_session_creation_peaks_below_1_6_times_the_weights(tmp_path: Path) -> None:
    graph = _int4(families.build(CONFIG).graph)
    (tmp_path / "model.graph.json").write_bytes(graph.to_json())
    weights = _random_weights(graph, tmp_path / "weights.safetensors")
    write(graph, weights, tmp_path / "model.onnx")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True
    )
    grown, size = json.loads(done.stdout), weights.stat().st_size
    print(f"peak growth {grown / 1e6:.0f} MB, weights {size / 1e6:.0f} MB: {grown / size:.2f}x")
    assert grown < 1.6 * size


def _int4(graph: Graph) -> Graph:
    """What `--quant int4` stores: int8 for the table and head, int4 for the other matrices."""
    weights = {
        name: Weight(
            w.shape, "f32" if len(w.shape) == 1 else "int8-g32" if name == "embed" else "int4-g32"
        )
        for name, w in graph.weights.items()
    }
    assert weights["embed"].shape[0] == CONFIG["vocab_size"]
    return graph.replace(weights=weights)


def _random_weights(graph: Graph, path: Path) -> Path:
    rng = np.random.default_rng(0)
    specs = {}
    for name, weight in graph.weights.items():
        specs |= tensors_of(name, weight)
    with TensorWriter(path, aligned_order(specs)) as writer:
        for name, (dtype, shape) in specs.items():
            if dtype == "U8":
                writer.write(name, rng.integers(0, 256, shape, np.uint8))
            else:
                kind = np.float16 if dtype == "F16" else np.float32
                writer.write(name, (0.01 * rng.random(shape)).astype(kind))
    return path
