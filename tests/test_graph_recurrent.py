"""Nodes of recurrent layers that do not fit are refused when a graph is read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edgert.errors import BundleError
from edgert.graph import Graph

from .session import toy


def changed(output: str, **changes: Any) -> bytes:
    """The toy graph of all recurrent ops with one node changed: attributes, `weight_<slot>` to the
    shape of a new weight, `spec` of its state, `named` for another state, or inputs."""
    graph = msgspec.json.decode(toy.recurrent()[0].to_json())
    node = next(n for n in graph["nodes"] if n["output"] == output)
    for key, value in changes.items():
        if key.startswith("weight_"):
            graph["weights"]["new"] = {"shape": value}
            node["weights"][key.removeprefix("weight_")] = "new"
        elif key in ("inputs", "named"):
            node["state" if key == "named" else key] = value
        elif key == "spec":
            graph["states"][node["state"]] |= value
        else:
            node["attrs"][key] = value
    return msgspec.json.encode(graph)


def plus(op: str, inputs: list[str], weight: list[int] | None = None, **attrs: Any) -> bytes:
    """The same with a further node."""
    graph = msgspec.json.decode(toy.recurrent()[0].to_json())
    node = {"op": op, "inputs": inputs, "output": "new", "attrs": attrs, "weights": {}}
    if weight is not None:
        graph["weights"]["new"] = {"shape": weight}
        node["weights"] = {"weight": "new"}
    graph["nodes"].append(node)
    return msgspec.json.encode(graph)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (changed("c0", width=1, spec={"width": 1}), "causal_conv: width is 1, expected 2 to 16"),
        (changed("c0", width=17, spec={"width": 17}), "causal_conv: width is 17, expected 2 to 16"),
        (changed("c0", channels=63, spec={"channels": 63}), "rows of 64, expected 63 channels"),
        (changed("c0", act="gelu"), "causal_conv: act is 'gelu', expected one of"),
        (changed("c0", tail=-1, spec={"tail": -1}), "state 'conv': tail is -1, expected 0 or more"),
        (changed("c0", tail=5), "state 'conv' is ConvState.*the node expects ConvState"),
        (changed("c0", weight_weight=[64, 3]), r"weight \(64, 3\), expected \(64, 4\)"),
        (changed("c0", weight_bias=[63]), r"causal_conv: bias \(63,\), expected \(64,\)"),
        (changed("c0", named="space"), "is RecurrentState.*the node expects ConvState"),
        (changed("s0", heads=0, spec={"heads": 0}), "state 'space': heads is 0, expected 1"),
        (changed("s0", groups=0), "ssd: 3 heads of 16, 0 of 8"),
        (changed("s0", groups=2), "ssd: 3 heads are no multiple of 2 groups"),
        (changed("s0", state=9), "state 'space' is .*the node expects"),
        (changed("d1", key_heads=0), "gated_delta: 3/0 heads"),
        (changed("s0", inputs=["in0", "gates1"]), "which nothing has produced yet"),
        (changed("s0", inputs=["in0", "in0"]), "ssd: steps of 64 heads, expected 3"),
        (changed("s0", inputs=["x0", "dt0"]), "ssd: rows of 48, expected 64"),
        (changed("s0", weight_a_log=[4]), r"ssd: a_log \(4,\), expected \(3,\)"),
        (changed("s0", dt_min=2.0, dt_max=1.0), "ssd: steps from 2.0 to 1.0"),
        (changed("s0", dt_max=1e39), "'dt_max' is 1e.39, out of range"),
        (changed("d1", key_heads=2), "gated_delta: 3 heads are no multiple of 2"),
        (changed("d1", inputs=["qkv1", "dt0"]), "gated_delta: gates of 3, expected 6"),
        (changed("d1", inputs=["x1", "gates1"]), "gated_delta: rows of 48, expected 64"),
        (changed("d1", eps=0.0), "gated_delta: eps is 0.0, expected > 0"),
        (changed("d1", weight_dt_bias=[2]), r"gated_delta: dt_bias \(2,\), expected \(3,\)"),
        (plus("gate", ["x0", "dt0"], act="silu"), "gate: shapes .* differ"),
        (plus("gate", ["x0", "x1"], act="gelu"), "gate: act is 'gelu', expected one of"),
        (plus("head_norm", ["x0"], [5], size=5, eps=1e-5), "head_norm: rows of 48 in parts of 5"),
        (plus("head_norm", ["x0"], [12], size=16, eps=1e-5), r"weight \(12,\), expected \(16,\)"),
        (plus("head_norm", ["x0"], [16], size=16, eps=0.0), "head_norm: eps is 0.0"),
        (plus("head_norm", ["x0"], [16], size=0, eps=1e-5), "in parts of 0"),
        (plus("row_rms", ["x0"], floor=0.0), "row_rms: floor is 0.0, expected > 0"),
        (plus("mix_streams", ["x0", "dt0"], streams=0), "mix_streams: 0 streams, expected 1 to 64"),
        (plus("mix_streams", ["x0", "dt0"], streams=2), "rows of 48, expected 2 streams of a mult"),
        (plus("mix_streams", ["in0", "dt0"], streams=2), "3 coefficients, expected a multiple of"),
    ],
)  # fmt: skip
def test_what_does_not_fit(data: bytes, says: str) -> None:
    with pytest.raises(BundleError, match=says):
        Graph.from_json(data)
