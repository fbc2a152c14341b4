"""Random Hugging Face checkpoints in the shapes of real models, to measure conversion and speed.

    python benchmarks/make_checkpoint.py 135m random-135m [--dtype bf16] [--shards 3]

NumPy only. Matrices are normal with deviation 1/sqrt(inputs), tables with 0.02, so activations keep
their size and logits depend on the whole prompt. The tokenizer is byte-level BPE with the model's
vocabulary size: it encodes any text, its merges are arbitrary.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgert.storage.safetensors_writer import TensorWriter

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# layers, width, heads, kv heads, feed-forward, vocabulary, tied, model_type
SHAPES: dict[str, tuple[int, int, int, int, int, int, bool, str]] = {
    "tiny": (2, 64, 4, 2, 160, 512, True, "llama"),
    "135m": (30, 576, 9, 3, 1536, 49152, True, "llama"),
    "0.5b": (24, 896, 14, 2, 4864, 151936, True, "qwen2"),
    "0.5b-llama": (24, 896, 14, 2, 4864, 151936, True, "llama"),
    "1.1b": (22, 2048, 32, 4, 5632, 32000, False, "llama"),
    "4b": (36, 2560, 32, 8, 9728, 151936, True, "llama"),
    "moe": (24, 1024, 16, 4, 512, 49152, False, "qwen3_moe"),  # feed-forward: of an expert
}
HEAD_DIM = {"4b": 128}  # where it is not width / heads
EXPERTS = {"moe": (32, 4)}  # how many, and how many of them a token reads
ROWS = 4096  # rows drawn at once


def config_of(shape: str, dtype: str) -> dict[str, Any]:
    """config.json of a named shape."""
    layers, width, heads, kv_heads, ff, vocab, tied, kind = SHAPES[shape]
    names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3_moe": "Qwen3Moe"}
    name = f"{names[kind]}ForCausalLM"
    count, active = EXPERTS.get(shape, (0, 0))
    experts = {
        "num_experts": count, "num_experts_per_tok": active, "moe_intermediate_size": ff,
        "norm_topk_prob": True, "head_dim": width // heads,
    }  # fmt: skip
    return {
        "architectures": [name],
        "model_type": kind,
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": ff,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **({"head_dim": HEAD_DIM[shape]} if shape in HEAD_DIM else {}),
        **(experts if count else {}),
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "torch_dtype": {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}[dtype],
    }


def tensor_shapes(shape: str) -> dict[str, tuple[int, ...]]:
    """Checkpoint tensors by name."""
    layers, width, heads, kv_heads, ff, vocab, tied, kind = SHAPES[shape]
    size = HEAD_DIM.get(shape, width // heads)
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width)}
    for i in range(layers):
        at = f"model.layers.{i}"
        rows = {"q": heads * size, "k": kv_heads * size, "v": kv_heads * size}
        out[f"{at}.input_layernorm.weight"] = (width,)
        for key, count in rows.items():
            out[f"{at}.self_attn.{key}_proj.weight"] = (count, width)
            if kind == "qwen2":
                out[f"{at}.self_attn.{key}_proj.bias"] = (count,)
        out[f"{at}.self_attn.o_proj.weight"] = (width, heads * size)
        out[f"{at}.post_attention_layernorm.weight"] = (width,)
        modules = [f"{at}.mlp"]
        if shape in EXPERTS:
            modules = [f"{at}.mlp.experts.{n}" for n in range(EXPERTS[shape][0])]
            out[f"{at}.mlp.gate.weight"] = (len(modules), width)
            for key in ("q", "k"):
                out[f"{at}.self_attn.{key}_norm.weight"] = (size,)
        for module in modules:
            out[f"{module}.gate_proj.weight"] = (ff, width)
            out[f"{module}.up_proj.weight"] = (ff, width)
            out[f"{module}.down_proj.weight"] = (width, ff)
    out["model.norm.weight"] = (width,)
    if not tied:
        out["lm_head.weight"] = (vocab, width)
    return out


def values(
    name: str, shape: tuple[int, ...], rng: np.random.Generator, *, spread: float = 0.02
) -> Iterator[np.ndarray]:
    """A tensor's float32 rows, in pieces."""
    if len(shape) == 1:
        noise = spread * rng.standard_normal(shape, np.float32)
        yield noise + np.float32(name.endswith("norm.weight"))
        return
    table = "embed" in name or "lm_head" in name
    deviation = np.float32(spread if table else shape[1] ** -0.5)
    for start in range(0, shape[0], ROWS):
        yield rng.standard_normal((min(ROWS, shape[0] - start), shape[1]), np.float32) * deviation


def stored(array: np.ndarray, dtype: str) -> np.ndarray:
    """float32 as what is written; BF16 (rounded to nearest even) as uint16."""
    if dtype == "f32":
        return array
    if dtype == "f16":
        return array.astype(np.float16)
    bits = array.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in byte order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = itertools.count(256)
    return [chr(b) if b in plain else chr(next(spare)) for b in range(256)]


def tokenizer_json(vocab_size: int) -> dict[str, Any]:
    """Byte-level BPE: specials, bytes, then pairs and triples of bytes until it is full."""
    alphabet = byte_alphabet()
    tokens = [*SPECIAL, *alphabet]
    letters = sorted(alphabet, key=lambda c: not c.isascii())  # merges of plain text first
    pairs = ((a, b) for a in letters for b in letters)
    triples = ((a + b, c) for a in letters for b in letters for c in letters)
    merges = list(itertools.islice(itertools.chain(pairs, triples), vocab_size - len(tokens)))
    tokens += [a + b for a, b in merges]
    added = [
        {
            "id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True,
        }
        for i, text in enumerate(SPECIAL)
    ]  # fmt: skip
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": [list(pair) for pair in merges],
        },
    }


def write_shard(path: Path, names: list[str], shape: str, dtype: str, seed: int) -> None:
    """One safetensors file. Each tensor has its own seed, so shards do not change values."""
    shapes = tensor_shapes(shape)
    kind = {"bf16": "BF16", "f16": "F16", "f32": "F32"}[dtype]
    with TensorWriter(path, {name: (kind, shapes[name]) for name in names}) as writer:
        for name in names:
            rng = np.random.default_rng([seed, list(shapes).index(name)])
            for piece in values(name, shapes[name], rng):
                writer.write(name, stored(piece, dtype))


def make_checkpoint(
    shape: str, folder: Path, *, dtype: str = "bf16", shards: int = 1, seed: int = 0
) -> Path:
    """Write the checkpoint directory; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensor_shapes(shape))
    if shards == 1:
        write_shard(folder / "model.safetensors", names, shape, dtype, seed)
    else:
        placed = {}
        for index in range(shards):
            file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
            mine = names[index * len(names) // shards : (index + 1) * len(names) // shards]
            write_shard(folder / file, mine, shape, dtype, seed)
            placed |= dict.fromkeys(mine, file)
        text = json.dumps({"metadata": {}, "weight_map": placed})
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    config = config_of(shape, dtype)
    names_of = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[2], "chat_template": TEMPLATE}
    files = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": 2},
        "tokenizer.json": tokenizer_json(config["vocab_size"]),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **names_of},
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("bf16", "f16", "f32"), default="bf16")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    made = make_checkpoint(
        args.shape, args.folder, dtype=args.dtype, shards=args.shards, seed=args.seed
    )
    size = sum(file.stat().st_size for file in made.iterdir())
    print(f"{made}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
