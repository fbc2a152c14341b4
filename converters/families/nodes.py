"""What builders of all families share: collecting nodes, weights and recipes of one graph.

Value names end in ".y" unless they are given, weight names do not, so that the two never meet in
one name space; given names are not those of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...graph import Graph, Node, Value, Weight
from .recipe import FamilyModel, Part, Recipe


class Nodes:
    """The nodes, weights and recipes of a graph that is being made."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.weights: dict[str, Weight] = {}
        self.recipes: dict[str, Recipe] = {}
        self.tied: dict[str, str] = {}

    def weight(self, name: str, recipe: Recipe) -> str:
        self.weights[name] = Weight(recipe.shape)
        self.recipes[name] = recipe
        return name

    def node(
        self, op: str, inputs: Sequence[str], label: str, *, output: str = "", **fields: Any
    ) -> str:
        """A node whose value is called `output`, or `label` with ".y"."""
        output = output or f"{label}.y"
        self.nodes.append(Node(op, tuple(inputs), output, **fields))
        return output

    def tensor(self, name: str, tensor: str, shape: tuple[int, ...], *, flat: bool = False) -> str:
        """A weight that is one tensor of the checkpoint."""
        return self.weight(name, Recipe((Part(tensor, shape),), flat=flat))

    def add(self, a: str, b: str, label: str, *, output: str = "") -> str:
        return self.node("add", [a, b], label, output=output)

    def activation(self, x: str, label: str, act: str) -> str:
        return self.node("activation", [x], label, attrs={"act": act})

    def product(
        self,
        x: str,
        label: str,
        tensor: str,
        shape: tuple[int, ...],
        *,
        bias: bool = True,
        flat: bool = False,
        weights: str = "",
        output: str = "",
    ) -> str:
        """A linear node of the tensors `tensor`.weight of `shape` and, with `bias`, `tensor`.bias.

        flat: the tensor is a convolution's [N, C, kh, kw], read with its channels last. weights:
        what its weights are called, `label` by default; nodes of one name share them.
        """
        held = weights or label
        slots = {"weight": self.tensor(held, f"{tensor}.weight", shape, flat=flat)}
        if bias:
            slots["bias"] = self.tensor(f"{held}_bias", f"{tensor}.bias", shape[:1])
        return self.node("linear", [x], label, weights=slots, output=output)

    def conv(
        self,
        x: str,
        label: str,
        tensor: str,
        shape: tuple[int, int, int, int],
        *,
        grid: tuple[int, int],
        bias: bool = True,
        stride: int = 1,
        padding: tuple[int, int] | None = None,
    ) -> str:
        """A conv2d node over a grid (height, width) of a tensor [N, C, k, k]; padding: cells
        before and after, by default those that keep the grid where the stride is 1."""
        kernel = shape[2]
        before, after = padding or (kernel // 2, kernel // 2)
        slots = {"weight": self.tensor(label, f"{tensor}.weight", shape, flat=True)}
        if bias:
            slots["bias"] = self.tensor(f"{label}_bias", f"{tensor}.bias", shape[:1])
        attrs = {
            "height": grid[0], "width": grid[1], "kernel": kernel, "stride": stride,
            "pad_before": before, "pad_after": after,
        }  # fmt: skip
        return self.node("conv2d", [x], label, weights=slots, attrs=attrs)

    def layer_norm(
        self, x: str, label: str, eps: float, *, tensor: str = "", width: int = 0, output: str = ""
    ) -> str:
        """layer_norm, with the weight and bias of `tensor` [width] where one is named."""
        slots = {}
        if tensor:
            slots["weight"] = self.tensor(label, f"{tensor}.weight", (width,))
            slots["bias"] = self.tensor(f"{label}_bias", f"{tensor}.bias", (width,))
        return self.node("layer_norm", [x], label, weights=slots, attrs={"eps": eps}, output=output)

    def group_norm(
        self, x: str, label: str, tensor: str, width: int, *, groups: int, eps: float
    ) -> str:
        """group_norm with the weight and bias of `tensor` [width]."""
        slots = {
            "weight": self.tensor(label, f"{tensor}.weight", (width,)),
            "bias": self.tensor(f"{label}_bias", f"{tensor}.bias", (width,)),
        }
        attrs = {"groups": groups, "eps": eps}
        return self.node("group_norm", [x], label, weights=slots, attrs=attrs)

    def model(self, name: str, inputs: Sequence[Value], outputs: Sequence[Value]) -> FamilyModel:
        """The graph, without states, and its recipes."""
        graph = Graph(name, tuple(inputs), tuple(outputs), tuple(self.nodes), self.weights)
        return FamilyModel(graph, self.recipes, self.tied)
