"""What the parts of a bundle are for, and what a graph must look like to be one.

| role           | takes                                    | gives                               |
|----------------|------------------------------------------|-------------------------------------|
| text           | tokens or float rows, a step at a time   | logits of wanted rows; hidden rows  |
| draft          | as text, may borrow another part's cache | as text                             |
| text-encoder, vision-encoder, projector, denoiser, decoder, encoder, reward | arrays | arrays |
"""

from __future__ import annotations

from .graph import Graph, Value
from .kernels.ops import CATALOGUE

STEPPED = ("text", "draft")
FUNCTIONS = (
    "text-encoder", "vision-encoder", "projector", "denoiser", "decoder", "encoder", "reward",
)  # fmt: skip
BATCHED = ("denoiser", "decoder")  # whose inputs come in batches, several pictures at once
ROLES = STEPPED + FUNCTIONS
# Roles without which a bundle of a kind cannot do what it is for.
KINDS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "image": ("denoiser", "decoder"),
    "reward": ("reward",),
}


def vocab_size(graph: Graph) -> int:
    """Width of the first output's rows: of the logits, in a graph that has them."""
    return int(graph.outputs[0].shape[-1])


def token_input(graph: Graph) -> str:
    """Name of the int32 input that holds tokens (an `embed` node reads it), "" for none."""
    names = {value.name for value in graph.inputs}
    return next(
        (node.inputs[0] for node in graph.nodes if node.op == "embed" and node.inputs[0] in names),
        "",
    )


def row_input(graph: Graph) -> str:
    """Name of the int32 input that selects the rows whose logits are wanted, "" for none."""
    return next((node.inputs[1] for node in graph.nodes if node.op == "select"), "")


def step_inputs(graph: Graph) -> dict[str, Value]:
    """The float inputs [T, width] that a feed gives, by name."""
    return {v.name: v for v in graph.inputs if v.dtype == "f32" and v.shape[0] == "T"}


def step_faults(graph: Graph) -> list[str]:
    """Why a graph cannot be stepped: kernels index by tokens and row numbers without looking
    again, so both must come from the step itself."""
    shapes, tokens, rows = graph.shapes(), token_input(graph), row_input(graph)
    faults = [
        f"input {value.name!r} of {value.dtype} {list(value.shape)}, expected rows T, and int32 "
        "only for tokens and selected rows"
        for value in graph.inputs
        if value.shape != _stepped_shape(value, tokens, rows)
    ]
    for node in graph.nodes:
        if node.op == "select" and (node.inputs[1] != rows or shapes[node.inputs[0]][0] != "T"):
            faults.append(
                f"node {node.output!r} selects {node.inputs[1]!r} of {shapes[node.inputs[0]][0]} "
                f"rows, expected {rows!r} of T rows"
            )
        if not graph.states and CATALOGUE[node.op].reach is not None:
            faults.append(f"node {node.output!r} reads positions, of a graph that remembers none")
        if node.op == "embed" and node.inputs[0] != tokens:
            faults.append(f"node {node.output!r} embeds {node.inputs[0]!r}, not the tokens")
    if tokens and tokens == rows:
        faults.append(f"{tokens!r} are tokens and selected rows at once")
    return faults


def _stepped_shape(value: Value, tokens: str, rows: str) -> tuple[int | str, ...]:
    if value.dtype == "f32":
        return ("T", value.shape[-1])
    return {tokens: ("T",), rows: ("R",)}.get(value.name, ())


def role_faults(role: str, graph: Graph) -> list[str]:
    """Why a graph cannot have a role, besides what `Graph.shapes` checks."""
    if role in FUNCTIONS:
        if graph.states:
            return [f"states {sorted(graph.states)[:4]}, expected none in a function of arrays"]
        return []
    faults = step_faults(graph)
    logits, *taps = graph.outputs or (Value("", ()),)
    if logits.name != "logits" or logits.shape[:1] != ("R",) or not row_input(graph):
        faults.append(
            f"outputs {[value.name for value in graph.outputs]}, the first is "
            f"{list(logits.shape)}, expected logits [R, V] of selected rows"
        )
    faults += [
        f"output {value.name!r} has rows {value.shape[0]}, expected T"
        for value in taps
        if value.shape[0] != "T"
    ]
    return faults
