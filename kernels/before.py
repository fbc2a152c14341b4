"""What a product with codes does to its rows before it quantizes them.

A norm, a modulation or an activation whose readers are all such products is left out by its own
lowering (`lowering.only_quantized`); the quantization does its work on the way, so that the rows it
makes never go through memory.
"""

from __future__ import annotations

from typing import Any

from .cpu.layout import ACTS, BEFORE_ACTIVATION, BEFORE_LAYER, BEFORE_MODULATION, BEFORE_RMS
from .lowering import Builder, Word, weight
from .modulation import affine_words, norm_before


def work_before(b: Builder, x: str) -> tuple[str, list[str], dict[str, Word]]:
    """The value whose rows are read to quantize those of `x`, all that is read, and the operands
    before, act, eps and `modulation.PARTS`."""
    words: dict[str, Word] = {"before": 0, "act": 0} | affine_words(b, None, None)
    node: Any = None if b.exists(x) else b.producer(x)
    if node is None:
        return x, [x], words
    source = node.inputs[0]
    if node.op == "rms_norm":
        words |= {"before": BEFORE_RMS, "weight": weight(node, "weight")}
        return source, [source], words | {"eps": b.attrs(node)["eps"]}
    if node.op == "activation":
        words |= {"before": BEFORE_ACTIVATION, "act": ACTS[b.attrs(node)["act"]]}
        return source, [source], words
    if node.op == "layer_norm":
        words |= affine_words(b, node, None) | {"before": BEFORE_LAYER}
        return source, [source], words
    norm = norm_before(b, node)
    words |= affine_words(b, norm, node)
    words["before"] = BEFORE_LAYER if norm else BEFORE_MODULATION
    source = norm.inputs[0] if norm else source
    return source, [source, node.inputs[1]], words
