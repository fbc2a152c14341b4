"""Every kernel module, imported so that each registers its kernels with the interpreter."""

from . import (
    activation,
    append,
    attention,
    conv,
    dot_attention,
    group_norm,
    linear,
    linear_float,
    linear_indexed,
    linear_planes,
    patches,
    rows,
    scatter,
    stream,
    upsample,
    winograd,
)

__all__ = [
    "activation",
    "append",
    "attention",
    "conv",
    "dot_attention",
    "group_norm",
    "linear",
    "linear_float",
    "linear_indexed",
    "linear_planes",
    "patches",
    "rows",
    "scatter",
    "stream",
    "upsample",
    "winograd",
]
