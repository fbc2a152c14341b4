"""What is trained of a weight, by how it is stored.

A `Trained` weight has float tensors to train, gives the weight as a differentiable function of
them, and goes back to what is stored. All tensors are relative, so that one rate fits every
layer of every model:

    Plain     f32 and f16: the values over their RMS
    Scaled    codes: each group's scale over what it was; codes stay
    Rounded   codes too: latent levels, in steps of the grid. The forward pass rounds them, the
              gradient passes straight through (Bengio, arXiv 1308.3432); scales as above, which
              is LSQ (arXiv 1902.08153) in units of a step
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...graph import Graph
from ...kernels.encodings import dequantize
from ...kernels.quant import F32, Matrix, Quantized
from .coded import Coded, coded_of, halves

HALF_STEP = 0.499  # a latent starts at most so far from its level, and so rounds to it
EMPTY = 1e-2  # stands in for the RMS of a tensor of zeros


class Trained(Protocol):
    """tensors: float32 leaves by kind: "values", "scales" or "levels"."""

    tensors: dict[str, Tensor]

    def dense(self) -> Tensor:
        """float32 of the weight's shape, differentiable in `tensors`."""
        ...

    def settle(self) -> None:
        """After a step of the optimizer: back into the range of what can be stored."""
        ...

    def stored(self) -> Matrix:
        """As it was given. Raises ValueError for values that the encoding cannot hold."""
        ...


class Plain:
    """An f32 or f16 array, trained whole."""

    def __init__(self, array: NDArray[np.float32] | NDArray[np.float16], device: str) -> None:
        self.dtype = array.dtype
        wide = array.astype(np.float32)
        rms = float(np.sqrt(np.square(wide, dtype=np.float64).mean())) if wide.size else 0.0
        self.rms = rms or EMPTY
        values = torch.from_numpy(wide).to(device) / self.rms
        self.tensors = {"values": values.requires_grad_()}

    def dense(self) -> Tensor:
        return self.tensors["values"] * self.rms

    def settle(self) -> None:
        pass

    def stored(self) -> NDArray[np.float32] | NDArray[np.float16]:
        values: F32 = self.dense().detach().cpu().numpy()
        return halves(values, "a value") if self.dtype == np.float16 else values


class Scaled:
    """Codes that stay, scales that are trained."""

    def __init__(self, matrix: Quantized, coded: Coded, device: str) -> None:
        self.matrix, self.coded = matrix, coded
        small = np.abs(coded.levels).max(initial=0) < 128
        levels = coded.levels.astype(np.int8) if small else coded.levels
        self.levels = torch.from_numpy(levels).to(device)
        self.scales = torch.from_numpy(coded.scales.astype(np.float32)).to(device)
        self.tensors = {"scales": torch.ones_like(self.scales).requires_grad_()}

    def steps(self) -> Tensor:
        """Scales [..]."""
        return self.scales * self.tensors["scales"]

    def dense(self) -> Tensor:
        return self.coded.layout.place(self.levels.float() * self.steps()[..., None])

    def settle(self) -> None:
        pass

    def final(self) -> NDArray[np.int16]:
        """Levels [.., group] as they are stored."""
        return self.coded.levels

    def stored(self) -> Quantized:
        scales = halves(self.steps().detach().cpu().numpy(), "a scale")
        tensors = self.coded.store(self.final(), scales)
        return Quantized(self.matrix.encoding, self.matrix.shape, tensors)


class Rounded(Scaled):
    """Levels and scales, both trained.

    original: the weight as it was before, float32 [N, K]. A latent level starts there, as near as
    its code allows: the model starts with the codes it came with, whichever quantizer chose them,
    and a level whose code was a close decision needs little to take the other one.
    """

    def __init__(
        self, matrix: Quantized, coded: Coded, device: str, original: F32 | None = None
    ) -> None:
        super().__init__(matrix, coded, device)
        levels = self.levels.float()
        self.low, self.high = (
            torch.from_numpy(bound.astype(np.float32)).to(device)[..., None]
            for bound in (coded.low, coded.high)
        )
        if original is not None:
            steps = torch.where(self.scales == 0, torch.inf, self.scales)[..., None]
            exact = coded.layout.pick(torch.from_numpy(original).to(device)).reshape(levels.shape)
            exact = (exact / steps).clamp(self.low, self.high)
            levels = exact.clamp(levels - HALF_STEP, levels + HALF_STEP)
        self.tensors["levels"] = levels.requires_grad_()

    def dense(self) -> Tensor:
        latent = self.tensors["levels"]
        rounded = latent + (latent.round() - latent).detach()
        return self.coded.layout.place(rounded * self.steps()[..., None])

    @torch.no_grad()
    def settle(self) -> None:
        self.tensors["levels"].clamp_(self.low, self.high)

    def final(self) -> NDArray[np.int16]:
        return self.tensors["levels"].detach().round().to(torch.int16).cpu().numpy()


def frequencies(graph: Graph) -> set[str]:
    """Names of rotary tables: constants, not weights."""
    slots = (item for node in graph.nodes for item in node.weights.items())
    return {name for slot, name in slots if slot.startswith("inv_freq")}


def trained_of(
    graph: Graph,
    weights: Mapping[str, Matrix],
    originals: Mapping[str, Matrix],
    *,
    method: str,
    device: str,
) -> dict[str, Trained]:
    """What there is to train. originals: the source's weights; those of the same name and shape
    are where latent levels start. Rotary tables, and encodings without a reader, are left out."""
    found: dict[str, Trained] = {}
    for name in sorted(set(graph.weights) - frequencies(graph)):
        weight = weights[name]
        if not isinstance(weight, Quantized):
            found[name] = Plain(weight, device)
            continue
        coded = coded_of(weight)
        if coded is None:
            continue
        if method == "scales":
            found[name] = Scaled(weight, coded, device)
            continue
        original = originals.get(name)
        near = original is not None and original.shape == weight.shape
        start = dequantize(original) if original is not None and near else None
        found[name] = Rounded(weight, coded, device, start)
    return found
