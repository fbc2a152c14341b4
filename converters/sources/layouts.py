"""Checkpoints that mean a known model and store it in another dress, as transformers reads them.

- Tensors without the prefix `model.` (saved from the base model) or under wrappers (`wrappers`),
  and the text part of a composite model under the prefixes it has had; its vision tensors are left
  out. Layers that predict further tokens are no part of the model (`drafting`).
- Quantized checkpoints are refused by one line. A `quantization_config` that is left over beside
  float tensors is ignored, with a notice.
- A config that ties the head to the embedding beside a head with other values: the head counts.
- `attention_bias` beside output projections without one: there is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import ConvertError
from ...notices import notice
from ..families import COMPOSITES, FamilyModel
from ..families.blocks import EMBED, HEAD
from ..match import same_values
from .base import SourceTensor
from .checkpoint import FLOATS
from .drafting import drafting
from .wrappers import BARE, without_sure_wrappers

TEXT_PREFIXES = (
    ("language_model.", ""),
    ("model.language_model.", "model."),
    ("model.text_model.", "model."),
)
OTHERS = re.compile(
    r"(model\.)?(vision_tower|vision_model|multi_modal_projector|connector|visual|audio_tower"
    r"|embed_vision|embed_audio)\."
)
SHARED = re.compile(r"(?:model\.)?layers\.(\d{1,6})\.self_attn\.(?:k_proj|v_proj|k_norm)\.")
# What quantizers store instead of, or beside, a matrix.
PACKED = re.compile(
    r"\.(qweight|qzeros|g_idx|weight_packed|weight_scale|weight_scale_inv|weight_zero_point"
    r"|SCB|weight\.absmax|weight\.quant_map|weight\.quant_state\.\w+|experts\.\w+_(blocks|scales))$"
)
OUTPUT = "self_attn.o_proj."
# Names that a family's tensors had before, read by transformers.
RENAMED: Mapping[str, tuple[re.Pattern[str], str]] = {
    "gpt2": (re.compile(r"^(?=(h|wte|wpe|ln_f)\.)"), "transformer."),  # of the base model
    "mamba2": (re.compile(r"^backbone\.embedding\."), "backbone.embeddings."),
}
Tensors = dict[str, SourceTensor]


def named(config: Mapping[str, Any], tensors: Mapping[str, SourceTensor]) -> Tensors:
    """The tensors by the names that families know."""
    out = dict(tensors)
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in COMPOSITES:
        whole = without_sure_wrappers(out)
        out = {_text_name(n): t for n, t in whole.items() if not OTHERS.match(n)}
        if others := len(tensors) - len(out):
            notice(f"{others} tensors of other parts than the text are left out")
    for name in drafting(config, out):
        out.pop(name, None)
    if kind in ("gemma3n", "gemma3n_text", "gemma4", "gemma4_text"):
        out = without_shared(config.get("text_config", config), out)
    if isinstance(kind, str) and kind in RENAMED:
        old, new = RENAMED[kind]
        out = {old.sub(new, n): t for n, t in out.items()}
    if not any(name.startswith("model.") for name in out):
        out = {f"model.{n}" if BARE.match(n) else n: t for n, t in out.items()}
    return out


def without_shared(text: Any, tensors: Tensors) -> Tensors:
    """The tensors without keys and values of layers that read another layer's, as transformers
    reads them. text: config of the text."""
    said = text if isinstance(text, dict) else {}
    layers, shared = said.get("num_hidden_layers"), said.get("num_kv_shared_layers")
    if type(layers) is not int or type(shared) is not int:
        return tensors
    out = {
        name: tensor
        for name, tensor in tensors.items()
        if not (found := SHARED.match(name)) or int(found[1]) < layers - shared
    }
    if others := len(tensors) - len(out):
        notice(f"{others} tensors of keys and values that their layers do not compute are left out")
    return out


def _text_name(name: str) -> str:
    for prefix, instead in TEXT_PREFIXES:
        if name.startswith(prefix):
            return instead + name.removeprefix(prefix)
    return name


def float_config(
    where: str, config: Mapping[str, Any], tensors: Mapping[str, SourceTensor]
) -> dict[str, Any]:
    """The config without a left-over quantization_config; ConvertError where it is true."""
    asked = config.get("quantization_config")
    asked = asked if isinstance(asked, dict) else {}
    packed = sorted(name for name in tensors if PACKED.search(name))
    if asked:
        packed += sorted(n for n, t in tensors.items() if t.dtype not in FLOATS)
    if packed:
        method = str(asked.get("quant_method", "an unnamed method"))[:40]
        raise ConvertError(
            f"{where} is quantized already ({method}; {len(packed)} packed tensors, {packed[0]!r} "
            "the first), expected its float original",
            code="quantized",
            hint="convert the checkpoint that it was made from: edgert quantizes by itself",
        )
    if "quantization_config" not in config:
        return dict(config)
    if config["quantization_config"]:
        notice(f"{where}: its quantization_config is left over, all tensors are floats: ignored")
    return {key: value for key, value in config.items() if key != "quantization_config"}


def as_stored(
    plan: Callable[[Mapping[str, Any]], FamilyModel],
    config: Mapping[str, Any],
    tensors: Mapping[str, SourceTensor],
) -> FamilyModel:
    """The plan of a config, as far as its tensors say what the config does not."""
    model = plan(config)
    head, table = tensors.get(HEAD), tensors.get(model.tied.get(HEAD, EMBED))
    if HEAD in model.tied and head is not None and table is not None and head.shape == table.shape:
        if {head.dtype, table.dtype} <= set(FLOATS) and not same_values(table, head):
            notice(
                f"the config ties {HEAD} to {model.tied[HEAD]}, whose values differ: the stored "
                "head is used"
            )
            model = plan({**config, "tie_word_embeddings": False})
    if any(f"{OUTPUT}bias" in name for name in tensors):
        return model
    return model.without_biases(lambda name: OUTPUT in name)
