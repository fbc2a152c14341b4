"""Every kernel module, imported so that each registers its kernels with the interpreter."""

from . import (
    activation,
    append,
    attention,
    linear,
    linear_float,
    linear_indexed,
    linear_planes,
    scatter,
    stream,
)

__all__ = [
    "activation",
    "append",
    "attention",
    "linear",
    "linear_float",
    "linear_indexed",
    "linear_planes",
    "scatter",
    "stream",
]
