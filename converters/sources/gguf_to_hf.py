"""Rewrites a small Llama GGUF as a Hugging Face checkpoint directory.

    python -m edgert.converters.sources.gguf_to_hf stories260K.gguf edgert/demo/stories260k \
        --dtype f16 --context 512

For float GGUF files of architecture "llama" with a SentencePiece vocabulary: this is how the
checkpoint in edgert/demo/stories260k was made. Rotary channels are stored interleaved in GGUF and
in halves by Hugging Face, so the rows of q and k are put in the other order. Needs the `gguf`
package (pip install "edgert[convert]").
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConvertError
from ...storage.safetensors_writer import TensorWriter, aligned_order
from .gguf_tokenizer import tokenizer_json

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}


def gguf_to_hf(path: Path, out: Path, *, dtype: str = "f32", context: int = 0) -> Path:
    """Write config.json, model.safetensors and the tokenizer's files into `out`.

    dtype: f32 or f16 for matrices (norms stay f32). context: tokens, where the file's own claim is
    wrong. Raises ConvertError for other architectures, quantized tensors or tokenizers.
    """
    from gguf import GGUFReader

    reader = GGUFReader(str(path))
    meta = {key: field.contents() for key, field in reader.fields.items()}
    if meta.get("general.architecture") != "llama" or meta.get("tokenizer.ggml.model") != "llama":
        raise ConvertError(
            f"{path} is {meta.get('general.architecture')!r} with tokenizer "
            f"{meta.get('tokenizer.ggml.model')!r}, expected 'llama' and 'llama'",
            code="gguf",
            hint="take the model's Hugging Face checkpoint",
        )
    tensors = {t.name: _values(t, path) for t in reader.tensors}
    config = _config(meta, tensors, context)
    out.mkdir(parents=True, exist_ok=True)
    _write_weights(out / "model.safetensors", hf_tensors(tensors, config), dtype)
    bos, eos = config["bos_token_id"], config["eos_token_id"]
    pieces = meta["tokenizer.ggml.tokens"]
    names = {"bos_token": pieces[bos], "eos_token": pieces[eos], "unk_token": pieces[0]}
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", {"bos_token_id": bos, "eos_token_id": eos})
    _write_json(
        out / "tokenizer.json",
        tokenizer_json(
            pieces, meta["tokenizer.ggml.scores"], meta["tokenizer.ggml.token_type"], bos=bos
        ),
    )
    # not LlamaTokenizer, whose steps differ from SentencePiece's where a text begins with a space
    kind: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    kind |= {"add_bos_token": True, "add_eos_token": False}
    _write_json(
        out / "tokenizer_config.json", kind | {"clean_up_tokenization_spaces": False} | names
    )
    return out


def _values(tensor: Any, path: Path) -> NDArray[Any]:
    if tensor.tensor_type.name not in ("F32", "F16"):
        raise ConvertError(
            f"{path}: tensor {tensor.name!r} is {tensor.tensor_type.name}, expected F32 or F16",
            code="gguf",
            hint="take an unquantized file",
        )
    found: NDArray[Any] = np.array(tensor.data)
    return found


def _config(
    meta: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], context: int
) -> dict[str, Any]:
    head = tensors.get("output.weight")
    vocab, width = tensors["token_embd.weight"].shape
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": int(vocab),
        "hidden_size": int(width),
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "hidden_act": "silu",
        "max_position_embeddings": context or meta["llama.context_length"],
        "rms_norm_eps": float(f"{meta['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": float(meta.get("llama.rope.freq_base", 10000.0)),
        "tie_word_embeddings": head is None or np.array_equal(head, tensors["token_embd.weight"]),
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
    }


def hf_tensors(
    tensors: Mapping[str, NDArray[Any]], config: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    """Tensors by Hugging Face names, q and k rows in half-split order."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    out = {}
    for name, values in tensors.items():
        block, _, rest = (
            name.removeprefix("blk.").partition(".") if name.startswith("blk.") else ("", "", name)
        )
        role = rest.removesuffix(".weight")
        if role == "output" and config["tie_word_embeddings"]:
            continue
        if role in heads:
            values = half_split(values, heads[role])
        prefix = f"model.layers.{block}." if block else ""
        out[f"{prefix}{NAMES[role]}.weight"] = values
    return out


def half_split(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows [H * D, K] with rotary pairs (2i, 2i + 1) put at (i, D/2 + i) of each head."""
    split = rows.reshape(heads, -1, 2, rows.shape[1])  # [H, D/2, 2, K]
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3)).reshape(rows.shape)


def _write_weights(path: Path, tensors: Mapping[str, NDArray[Any]], dtype: str) -> None:
    stored = {
        name: values.astype(np.float16 if dtype == "f16" and values.ndim == 2 else np.float32)
        for name, values in tensors.items()
    }
    kinds = {np.dtype(np.float16): "F16", np.dtype(np.float32): "F32"}
    specs = {name: (kinds[values.dtype], values.shape) for name, values in stored.items()}
    with TensorWriter(path, aligned_order(specs), metadata={"format": "pt"}) as writer:
        for name, values in stored.items():
            writer.write(name, values)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", choices=("f32", "f16"), default="f32")
    parser.add_argument("--context", type=int, default=0)
    args = parser.parse_args()
    print(gguf_to_hf(args.gguf, args.out, dtype=args.dtype, context=args.context))


if __name__ == "__main__":
    main()
