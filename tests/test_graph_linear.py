"""Nodes of linear attention that do not fit are refused when a graph is read, before any memory."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from edgert.kernels.ops import CATALOGUE, OpError

from edgert.errors import BundleError, ResourceError
from edgert.graph import Graph
from edgert.session.slots import SlotPool

from .session.test_linear_attention import graph_of

OP = CATALOGUE["linear_attention"]


def changed(made: str = "shifted", **changes: Any) -> bytes:
    """The op alone with attributes changed, or `weight_<slot>` to the shape of a new weight, or
    `spec` of its state."""
    graph = msgspec.json.decode(graph_of(made, 64)[0].to_json())
    (node,) = graph["nodes"]
    for key, value in changes.items():
        if key.startswith("weight_"):
            graph["weights"][key] = {"shape": value}
            node["weights"][key.removeprefix("weight_")] = key
        elif key == "spec":
            graph["states"]["s"] |= value
        else:
            node["attrs"][key] = value
    if "spec" not in changes:  # the state that such a node would own
        with contextlib.suppress(OpError):
            state = OP.state_of(OP.check_attrs(node["attrs"]))  # type: ignore[misc]
            graph["states"]["s"] = msgspec.to_builtins(state)
    return msgspec.json.encode(graph)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (changed(mode="cube"), "mode is 'cube', expected one of"),
        (changed(heads=5), "5 heads are no multiple of 2"),
        (changed(heads=8), "rows of 160, expected 192"),
        (changed(features=12), "fewer features need q_map"),
        (changed(features=300, weight_q_map=[32, 300], weight_k_map=[32, 300]), "300 features"),
        (changed(chunk=8), "chunk is 8, expected 16 to 256"),
        (changed(scale=0.0), "eps and scale, expected 0 or more"),
        (changed(weight_beta=[3]), r"beta \(3,\), expected \(2,\)"),
        (changed(weight_q_map=[32, 16]), "only one of q_map, k_map"),
        (changed(weight_key_mean=[2, 8]), r"key_mean \(2, 8\), expected \(2, 16\)"),
        (changed(weight_inv_freq=[9]), "inv_freq"),
        (changed(weight_inv_freq=[8], rope_axes="01"), "rope_axes '01'"),
        (changed("square", weight_beta=[2], weight_gamma=[2]), "belong to mode shifted"),
        (changed("mamba2s", mode="square"), "gates of 4, expected 2"),
        (changed(window=True), "log_window belongs to a window"),
        (changed(weight_log_window=[6]), "log_window belongs to a window"),
        (changed("window", weight_log_window=[2]), r"log_window \(2,\), expected \(6,\)"),
        (changed("mamba2s", window=True, weight_log_window=[6]), "a window with mode 'mamba2s'"),
        (changed("2mamba-e", window=True, weight_log_window=[6]), "a window with mode '2mamba-e'"),
        (changed(spec={"tail": 64}), "the node expects RecurrentState"),
        (changed(decay=1), "'decay' is 1, expected bool"),
    ],
)
def test_what_does_not_fit_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(BundleError, match=says):
        Graph.from_json(data)


def test_a_state_beyond_all_addresses_is_an_error() -> None:
    graph, _ = graph_of("square", 64)
    large = msgspec.structs.replace(graph.states["s"], key_dim=1 << 40, tail=0, tail_width=0)
    with pytest.raises(ResourceError, match="no addresses for 4 slots of state 's'") as caught:
        SlotPool(graph.replace(states={"s": large}), 4, 8)
    assert caught.value.code == "state-slots"
