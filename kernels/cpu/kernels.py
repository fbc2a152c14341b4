"""Every kernel module, imported so that each registers its kernels with the interpreter."""

from . import (
    activation,
    append,
    attention,
    dot_attention,
    linear,
    linear_float,
    linear_indexed,
    linear_planes,
    patches,
    quantize,
    rows,
    scatter,
    stream,
)

__all__ = [
    "activation",
    "append",
    "attention",
    "dot_attention",
    "linear",
    "linear_float",
    "linear_indexed",
    "linear_planes",
    "patches",
    "quantize",
    "rows",
    "scatter",
    "stream",
]
