"""hunyuan_v1_dense: HunYuan 0.5B to 7B, query and key norms behind the rotation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import blocks, layers
from .config import Decoder, Schema, read_config
from .recipe import FamilyModel
from .rope import COMMON, rope, rope_parameters


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a dense HunYuan."""

    head_dim: int | None = None
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False


SCHEMA = Schema(
    "HunYuanDenseV1ForCausalLM",
    fixed={
        "hidden_act": ("silu",), "use_qk_norm": (True,), "use_rotary_pos_emb": (True,),
        "mlp_bias": (False,),
    },
    # ids, heads for other tasks, and how many layers would share keys if any did (use_cla)
    ignored=frozenset(
        """
        add_classification_head cla_share_factor class_num dense_list eod_token_id im_end_id
        im_newline_id im_start_id mask_init_id org_vocab_size pad_id pool_type text_end_id
        text_start_id
        """.split()
    ),
)  # fmt: skip


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    params = rope_parameters(c)
    if params["rope_type"] == "dynamic" and params.get("alpha"):
        params["rope_type"] = "ntk_alpha"
    types = (*COMMON, "ntk_alpha")
    turns = blocks.rotary(b, rope(params, b.head_dim, b.context, faults, types=types))

    def layer(index: int, x: str) -> str:
        return layers.pre_norm_layer(
            b, index, x, turns, act="silu", qk_norm=True, norm_last=True,
            norms=("query_layernorm", "key_layernorm"), qkv_bias=c.attention_bias,
            o_bias=c.attention_bias,
        )  # fmt: skip

    return layers.decoder(b, c, layer)
