"""The Hugging Face checkpoint: LlamaForCausalLM in bfloat16, tokenizer, chat template, model
card.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from .card import model_card
from .model import Llama, ModelConfig, hf_state_dict, load_hf_state_dict

# Advice for sampling: `python -m benchmarks.demo_advice` prints what it rests on.
GENERATION = {
    "bos_token_id": 0,
    "eos_token_id": [2, 0],
    "pad_token_id": 0,
    "max_new_tokens": 320,
    "do_sample": True,
    "top_k": 0,
    "temperature": 0.7,
    "top_p": 0.9,
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def hf_config(config: ModelConfig) -> dict:
    """config.json for LlamaForCausalLM."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.width // config.heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }


def export(
    model: Llama, tokenizer_folder: Path, results: dict, out: Path, *, notes: dict | None = None
) -> None:
    """Write the checkpoint aside, read it back, then put it in place of an older one."""
    aside = out.with_name(out.name + ".new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tensors = hf_state_dict(model)
    save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})
    (aside / "model.safetensors").chmod(0o644)  # safetensors writes it for the owner alone
    back = load_file(aside / "model.safetensors")
    wrong = [name for name in tensors if not back[name].equal(tensors[name])]
    if wrong:
        raise OSError(
            f"{aside}/model.safetensors differs from memory in {wrong[0]} and {len(wrong) - 1} more"
        )
    _write_json(aside / "config.json", hf_config(model.config))
    _write_json(aside / "generation_config.json", GENERATION)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_folder / name, aside / name)
    (aside / "README.md").write_text(model_card(model.config, results, notes or {}))
    shutil.rmtree(out, ignore_errors=True)
    os.replace(aside, out)


def load_checkpoint(folder: Path) -> Llama:
    """The exported model back in this recipe's own form, float32."""
    raw = json.loads((folder / "config.json").read_text())
    config = ModelConfig(
        vocab=raw["vocab_size"],
        width=raw["hidden_size"],
        layers=raw["num_hidden_layers"],
        heads=raw["num_attention_heads"],
        kv_heads=raw["num_key_value_heads"],
        ffn=raw["intermediate_size"],
        context=raw["max_position_embeddings"],
        rope_theta=raw["rope_theta"],
        norm_eps=raw["rms_norm_eps"],
    )
    model = Llama(config)
    load_hf_state_dict(model, load_file(folder / "model.safetensors"))
    return model.eval()


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
