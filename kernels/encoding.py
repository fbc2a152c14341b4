"""What a row of the table of encodings (`encodings.py`) says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from .grid import Grid
from .quant import F32, Blocks, Matrix, Quantized, Tensors

Shape = tuple[int, ...]


class Tensor(NamedTuple):
    """One stored tensor of a weight.

    key: its part of the name, "" for the weight's own; "scales" for scales, whose values `verify`
    looks at. dtype: as safetensors calls it. shape: from
    the weight's logical shape. by_row: whether its first axis is the weight's.
    """

    key: str
    dtype: str
    shape: Callable[[Shape], Shape]
    by_row: bool = True

    @property
    def suffix(self) -> str:
        return f".{self.key}" if self.key else ""


class Cpu(NamedTuple):
    """What the CPU session needs to know of an encoding.

    kernel: what its kernels are called after `linear_` and `gated_`. code: its number in the
    operands of `embed`. group_bytes: bytes of 16 packed rows of K inputs. offset: what the
    activation quantizer takes off again, None where products take float activations. every: blocks
    of 32 inputs that share a scale. gated: whether there is a `gated_` kernel. kept: values of a
    row that come with indices, 0 where all inputs have theirs. input_scratch: bytes of scratch
    for each input.
    """

    kernel: str
    code: int
    group_bytes: Callable[[int], int]
    offset: int | None = None
    every: int = 1
    gated: bool = True
    kept: int = 0
    input_scratch: int = 0


@dataclass(frozen=True)
class Encoding:
    """One row of the table; fields without a comment are described in `encodings.py`.

    dequantize: stored tensors by key and the logical shape -> float32 of that shape. densify: the
    same to the value in memory of the encoding `dense`. indexed: kernels that the CPU session takes
    instead of `cpu` where they read less than half the bytes. check: what is wrong with stored
    tensors of a shape that nothing may compute with, or "".
    """

    name: str
    bits: int  # of a stored value, without scales
    tensors: tuple[Tensor, ...]
    dequantize: Callable[[Tensors, Shape], F32]
    quantize: Callable[[F32], Tensors] | None = None
    blocks: Callable[[Tensors], Blocks] | None = None
    lows: Callable[[Tensors], F32] | None = None  # taken off each value of the groups of `blocks`
    cpu: Cpu | None = None
    onnx_bits: int = 0
    grid: Grid | None = None
    offered: bool = True  # whether a conversion may be asked for it by name
    ranks: tuple[int, ...] = (2,)  # of weights that may be stored so
    group: int = 0  # consecutive inputs that share a scale; 0: no scales, or one a row
    channels: bool = False  # whether weights and activations have one scale a row
    whole: int = 1  # K must be a multiple of this
    plain: str = ""  # NumPy dtype, where the value in memory is the one tensor itself
    alias: str = ""  # short name for `--quant`
    ends: str = ""  # what the embedding and the head get with it, by default; "": the same
    dense: str = ""
    densify: Callable[[Tensors, Shape], Matrix] | None = None
    indexed: Cpu | None = None
    check: Callable[[Tensors, Shape], str] | None = None
    unfit: Callable[[Shape], str] | None = None  # further reasons of `fault`

    @property
    def zeros(self) -> bool:
        """Whether its groups have zero points of their own."""
        return any(tensor.key == "zeros" for tensor in self.tensors)

    def fault(self, shape: Shape) -> str:
        """Why a weight of this shape cannot be stored so, or ""."""
        if len(shape) not in self.ranks:
            return f"is of rank {len(shape)}, expected one of {list(self.ranks)}"
        if shape[-1] % self.whole:
            return f"has rows of {shape[-1]}, expected a multiple of {self.whole}"
        return self.unfit(shape) if self.unfit else ""

    def specs(self, name: str, shape: Shape) -> dict[str, tuple[str, Shape]]:
        """The tensors {name: (dtype, shape)} that store a weight."""
        return {f"{name}{t.suffix}": (t.dtype, t.shape(shape)) for t in self.tensors}

    def load(self, tensors: Tensors, shape: Shape) -> Matrix:
        """The value in memory of stored tensors by key: the array itself, or a Quantized of it."""
        return tensors[""] if self.plain else Quantized(self.name, shape, tensors)
