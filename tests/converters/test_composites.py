"""Models with pictures: their text part, in the forms that its config and tensors have had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from edgert.converters.families import COMPOSITES, build, is_native

from tests.closeness import assert_close
from tests.converters.checkpoints import SIZES, expected_logits, prompt, scatter, write_tokenizer
from tests.converters.test_families import RMS
from tests.converters.test_layouts import ours

YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 512,
    "llama_4_scaling_beta": 0.1,
}  # fmt: skip
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
PATCHES = {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
QWEN = {**SMALL, "depth": 1, "num_heads": 2, "patch_size": 14, "out_hidden_size": 64}
AXES = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}
# model_type -> transformers' config class, changes to the text's SIZES, its vision part
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mistral3": ("Mistral3Config", {"model_type": "mistral", "head_dim": 32}, {**SMALL, **PATCHES}),
    "mistral3-ministral3": (
        "Mistral3Config",
        {"model_type": "ministral3", "head_dim": 16, "rope_parameters": YARN},
        {**SMALL, **PATCHES},
    ),
    "gemma4": (
        "Gemma4Config",
        {
            "model_type": "gemma4_text", "head_dim": 16, "global_head_dim": 32,
            "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 272,
            "layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4,
            "num_kv_shared_layers": 2, "sliding_window": 40, "pad_token_id": 0,
            "use_bidirectional_attention": "vision",
        },
        {**SMALL, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
         "patch_size": 4, "position_embedding_size": 16},
    ),
    "qwen2_5_vl": ("Qwen2_5_VLConfig", {"rope_parameters": AXES}, QWEN),
    "qwen3_vl": (
        "Qwen3VLConfig",
        {"head_dim": 16, "rope_parameters": {**AXES, "mrope_interleaved": True}},
        {**QWEN, "deepstack_visual_indexes": [0], "num_position_embeddings": 4},
    ),
    "smolvlm": ("SmolVLMConfig", {"model_type": "llama"}, {**SMALL, **PATCHES}),
}  # fmt: skip


def checkpoint(case: str, folder: Path) -> Any:
    """A tiny composite model of random weights, saved; returns it."""
    import torch
    import transformers

    torch.manual_seed(0)
    kind, changes, vision = CASES[case]
    text = {**SIZES, "num_hidden_layers": 2, **changes}
    config = getattr(transformers, kind)(text_config=text, vision_config=vision)
    cls = getattr(transformers, COMPOSITES[config.model_type].architecture)
    model = cls._from_config(config, attn_implementation="eager").float().eval()
    scatter(model)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_text_part_equals_transformers(case: str, tmp_path: Path) -> None:
    model = checkpoint(case, tmp_path / "m")
    assert_close(case, expected_logits(model, prompt(63)), ours(tmp_path / "m"), rms=RMS)
    assert is_native(json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8")))


def test_the_flat_form_of_qwen2_5_vl_means_the_same() -> None:
    """As the published files have it: the text's keys beside the vision part."""
    text = {
        "hidden_size": 2048, "intermediate_size": 11008, "max_position_embeddings": 128000,
        "max_window_layers": 70, "num_attention_heads": 16, "num_hidden_layers": 36,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "sliding_window": 32768, "use_sliding_window": False, "vocab_size": 151936,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "hidden_act": "silu",
    }  # fmt: skip
    whole = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
        "tie_word_embeddings": True, "vision_config": {"depth": 32}, "image_token_id": 151655,
        "video_token_id": 151656, "vision_start_token_id": 151652,
    }  # fmt: skip
    flat, apart = build({**whole, **text}), build({**whole, "text_config": text})
    assert flat.graph == apart.graph
    assert flat.graph.context == 128000


def test_queries_of_ministral_3_grow_where_the_text_passes_its_first_context() -> None:
    config = {"model_type": "ministral3", **SIZES, "max_position_embeddings": 2048}
    for beta, ops in ((0.1, {"scale_by_position"}), (0.0, set[str]())):
        graph = build({**config, "rope_parameters": {**YARN, "llama_4_scaling_beta": beta}}).graph
        assert graph.context == 2048
        assert ops == {node.op for node in graph.nodes} & {"scale_by_position"}
