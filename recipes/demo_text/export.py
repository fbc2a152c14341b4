"""The Hugging Face checkpoint: LlamaForCausalLM in bfloat16, tokenizer, chat template, model card."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from .model import Llama, ModelConfig, hf_state_dict, load_hf_state_dict
from .sources import HELD_OUT_NOVELS, LICENCES

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


def export(model: Llama, tokenizer_folder: Path, results: dict, out: Path, *, notes: dict | None = None) -> None:
    """Write the checkpoint aside, read it back, then put it in place of an older one."""
    aside = out.with_name(out.name + ".new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tensors = hf_state_dict(model)
    save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})
    back = load_file(aside / "model.safetensors")
    wrong = [name for name in tensors if not back[name].equal(tensors[name])]
    if wrong:
        raise OSError(f"{aside}/model.safetensors differs from memory in {wrong[0]} and {len(wrong) - 1} more")
    _write_json(aside / "config.json", hf_config(model.config))
    generation = {"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 0, "max_new_tokens": 320}
    _write_json(aside / "generation_config.json", generation)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_folder / name, aside / name)
    (aside / "README.md").write_text(model_card(model, results, notes or {}))
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


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def model_card(model: Llama, results: dict, notes: dict) -> str:
    """README.md of the checkpoint; every number comes from `results` and `notes`."""
    c = model.config
    bits = _table(
        ("text", "bits per byte"), [(name, f"{v:.4f}") for name, v in results["bits_per_byte"].items()]
    )
    blimp = _table(("BLiMP", "accuracy"), [(n, f"{100 * v:.2f} %") for n, v in results["blimp"].items()])
    licences = _table(("part", "origin", "licence"), [(x.name, x.origin, x.licence) for x in LICENCES])
    run = _table(("of the run", "value"), list(notes.get("run", {}).items()))
    curve = _table(
        ("step", "seconds", "tokens", "valid bits per byte"),
        [(x["step"], x["seconds"], x["tokens"], f"{x['valid_bpb']:.4f}") for x in notes.get("curve", [])],
    )
    paired = _table(
        ("paired run", "steps", "tokens", "seconds", "valid bits per byte"),
        [
            (name, x["step"], x["tokens"], x["seconds"], f"{x['valid_bpb']:.4f}")
            for name, x in notes.get("paired", [])
        ],
    )
    answers = "\n\n".join(
        f"**{x['prompt']}**\n\n> " + x["answer"].replace("\n", "\n> ") for x in results["answers"]
    )
    return CARD.format(
        parameters=f"{results['parameters'] / 1e6:.1f}M",
        layers=c.layers, width=c.width, heads=c.heads, kv=c.kv_heads, ffn=c.ffn, vocab=c.vocab,
        context=c.context, bits=bits, blimp=blimp, licences=licences, run=run, curve=curve, paired=paired,
        answers=answers, held_out=", ".join(HELD_OUT_NOVELS),
    )  # fmt: skip


CARD = """---
language: en
license: cc-by-sa-4.0
library_name: transformers
pipeline_tag: text-generation
---

# edgert's demo model

A chat model of {parameters} parameters, trained from open texts by `recipes/demo_text`. It greets, answers
simple everyday questions and tells short stories. Llama layout: {layers} layers, width {width}, {heads} query
and {kv} key/value heads of 64, feed-forward {ffn}, tied embeddings, byte-level BPE of {vocab} tokens,
context {context}.

## Use

Chat turns follow a ChatML-like template (in `tokenizer_config.json`): `<|im_start|>role`, line break, text,
`<|im_end|>`. Plain text was trained after `<|endoftext|>` (the BOS token; the tokenizer does not add it).

## Figures

Weights in bfloat16 as shipped, arithmetic in float32. Bits per byte: per document, after `<|endoftext|>`,
non-overlapping windows of {context} tokens, divided by UTF-8 bytes. BLiMP: summed log-probability after
`<|endoftext|>`, all 67 paradigms, ties wrong.

{bits}

{blimp}

## Training

{run}

The optimizer was chosen by short runs of equal training time, same data, same schedule to zero, no chat tuning:

{paired}

Running bits per byte on the first 64 rows of the Wikipedia validation text (bf16, rows of {context} tokens
without regard to documents, so not the same figure as above). All logs are JSON lines in
`recipes/demo_text/curves/`.

{curve}

## Data

{licences}

Paragraphs that repeat, or that share a sentence of eight words or more with an evaluation text (Wikipedia and
WikiText-2 validation and test, held-out novels), were dropped. The novels {held_out} were held
out. No benchmark data was trained on.

The texts are under the licences above; Wikipedia and the Schema-Guided dialogues ask for attribution and share
alike, so the weights are offered under CC BY-SA 4.0.

## Limits

The model is small. It knows few facts and states wrong ones with the same confidence; arithmetic beyond
small numbers fails; stories are simple and their plots repeat, because most chat tuning text comes from the
recipe's own generator. It speaks English only. Old novels and encyclopedia articles carry the views of their
time and authors, and nothing was done to remove them. It has had no safety tuning: do not put it before the
public, and do not use it for advice of any kind.

## Ten fixed prompts, greedy, unedited

{answers}
"""
