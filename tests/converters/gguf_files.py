"""GGUF files of transformers' models, by the `gguf` package, as llama.cpp's own script writes them.

Names of tensors come from the package's own map. A matrix's type may be chosen; what the package
cannot quantize is made of random blocks (`blocks_of`), with the values that the package reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from edgert.kernels.gguf_blocks import FORMS
from numpy.typing import NDArray

from tests.converters import gguf_delta, gguf_dense, gguf_recurrent

NAMES = {
    **gguf_dense.NAMES,
    "deepseek_v2": "deepseek2", "gemma3_text": "gemma3", "gemma3n_text": "gemma3n",
    "gpt_oss": "gpt-oss",
    "hunyuan_v1_dense": "hunyuan-dense", "mistral": "llama",
    "qwen3_moe": "qwen3moe", **gguf_recurrent.NAMES, **gguf_delta.NAMES,
}  # fmt: skip
TYPES = (
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4",
)  # fmt: skip
Chosen = Callable[[str, NDArray[np.float32]], str]


def interleaved(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of heads from halves (i, D/2 + i) to pairs (2i, 2i + 1), as the script permutes them."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def write_model(
    model: Any,
    path: Path,
    kinds: Chosen | str = "F32",
    *,
    keys: Mapping[str, Any] | None = None,
    apart: bool = False,
    older: bool = False,
    fused: bool = False,
) -> dict[str, NDArray[np.float32]]:
    """A transformers model as a GGUF file with a byte-level vocabulary; gives the values that the
    package reads of each tensor, by transformers' names and in its order. keys: more metadata.
    apart: keys and values of latent attention in two tensors, as newer files have them. older: of
    Qwen3-Next, as its first files were. fused: gates and ups of experts in one stack."""
    import gguf

    config = model.config
    name = NAMES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(str(path), name)
    stored = dict(gguf_recurrent.tensors(model.state_dict(), config))
    guessing = int(any(key.startswith("mtp.") for key in stored))
    if not gguf_delta.hyperparameters(writer, config, guessing):
        written = {**gguf_dense.WRITERS, **gguf_recurrent.WRITTEN}
        written.get(config.model_type, _hyperparameters)(writer, config)
    if hasattr(config, "altup_num_inputs"):
        _streams(writer, config)
    if hasattr(config, "kv_lora_rank"):
        _latent(writer, config, name, apart)
    _vocabulary(writer, config.vocab_size)
    for key, value in (keys or {}).items():
        writer.add_key_value(key, *value)
    arch = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers + guessing)
    read: dict[str, NDArray[np.float32]] = {}
    tied = config.tie_word_embeddings
    tensors = gguf_delta.rewritten(_apart(stored, config, apart, fused), config, older)
    for key, tensor in gguf_dense.tensors(tensors, writer, config):
        if tied and key in ("lm_head.weight", "embed_out.weight"):
            continue
        values = tensor.float().numpy()
        shifts = name.startswith("gemma") and name not in ("gemma3n", "gemma4")
        if shifts and key.endswith("norm.weight"):
            values = values + np.float32(1)
        pairs = _pairs(key, name, config)
        rows = interleaved(values, pairs) if pairs else values
        key += ".weight" * key.endswith("correct_output_scale")
        target = _expert_name(key) or gguf_delta.name_of(key, config)
        target = target or names.get_name(key, try_suffixes=(".weight", ".bias"))
        small = rows.ndim == 1 or key.endswith(("bias", "wpe.weight"))
        kind = "F32" if small else kinds if isinstance(kinds, str) else kinds(key, rows)
        data, back = encoded(rows, kind)
        writer.add_tensor(target, data, raw_dtype=gguf.GGMLQuantizationType[kind])
        read[key] = halves(back, pairs) if pairs else back
    for target, vector in (_factors(config) | gguf_delta.factors(config)).items():
        writer.add_tensor(target, vector)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file"):
        getattr(writer, step)()
    writer.close()
    return read


def _apart(
    tensors: Mapping[str, Any], config: Any, apart: bool, fused: bool
) -> Iterator[tuple[str, Any]]:
    """Stacked gates and ups of experts as two tensors, gpt-oss's turned; where they shall be apart,
    keys of latent attention, turned, and values; matrices of streams stacked."""
    import torch

    for key, tensor in tensors.items():
        if config.model_type == "gpt_oss" and ".experts." in key:
            rows = tensor if key.endswith("bias") else tensor.transpose(1, 2)
            both = {"gate": rows[:, 0::2], "up": rows[:, 1::2]} if "gate_up" in key else {"": rows}
            for name, half in both.items():
                yield key.replace("gate_up", name) if name else key, half.contiguous()
        elif stack := re.fullmatch(r"(model\.altup_\w+)\.(\d+)\.weight", key):
            if stack[2] == "0":
                each = [t for n, t in tensors.items() if n.startswith(f"{stack[1]}.")]
                yield f"{stack[1]}.weight", torch.stack(each)
        elif apart and key.endswith("kv_b_proj.weight"):
            own, value = config.qk_nope_head_dim, config.v_head_dim
            heads = tensor.view(config.num_attention_heads, own + value, -1)
            yield key.replace("kv_b", "k_b"), heads[:, :own].transpose(1, 2).contiguous()
            yield key.replace("kv_b", "v_b"), heads[:, own:].contiguous()
        elif key.endswith("experts.gate_up_proj") and not fused:
            for name, half in zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True):
                yield key.replace("gate_up", name), half.contiguous()
        else:
            yield key, tensor


def _expert_name(key: str) -> str:
    """GGUF's name of a router, of stacked experts or of sinks, "" for other tensors."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", key)
    if found is None:
        return ""
    router = re.fullmatch(r"(?:mlp\.gate|.*\.router)\.(weight|bias)", found[2])
    if router:
        return f"blk.{found[1]}.ffn_gate_inp.{router[1]}"
    if found[2] == "self_attn.sinks":
        return f"blk.{found[1]}.attn_sinks.weight"
    stack = re.fullmatch(r".*\.experts\.(gate|up|gate_up|down)_proj(_bias)?", found[2])
    end = "bias" if stack and stack[2] else "weight"
    return f"blk.{found[1]}.ffn_{stack[1]}_exps.{end}" if stack else ""


def halves(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """The other way round."""
    split = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def _pairs(key: str, name: str, config: Any) -> int:
    """Heads of a tensor that the script permutes."""
    permuted = ("arcee", "llama", "smollm3", "granitemoe", "granitehybrid", *gguf_dense.PERMUTED)
    if name not in permuted:
        return 0
    if ".q_proj." in key:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".k_proj." in key else 0


def encoded(rows: NDArray[np.float32], kind: str) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """A matrix in a type, and the values that the package reads of it."""
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    try:
        data = gguf.quantize(rows, number)
    except NotImplementedError:
        data = blocks_of(kind.lower(), rows)
    return data, np.ascontiguousarray(gguf.dequantize(data, number), np.float32)


def blocks_of(name: str, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Random blocks of about the size of the values of rows [.., K]."""
    form, rng = FORMS[name], np.random.default_rng(rows.shape[0])
    lead, k = rows.shape[:-1], rows.shape[-1]
    n = rows.size // k
    blocks = rng.integers(0, 256, (n, k // form.values, form.nbytes)).astype(np.uint8)
    places = {"q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,)}
    steps = {"q2_k": 15, "q3_k": 20, "q4_k": 40, "q5_k": 40, "q6_k": 74, "iq4_xs": 20}
    size = {"iq4_nl": 70.0, "iq4_xs": 70.0 * 20}.get(name) or steps[name] * 2.0**form.bits / 4
    for at in places.get(name, (0,)):
        d = np.float32(rows.std()) / size * (0.7 + 0.6 * rng.random(blocks.shape[:2]))
        if at == places.get(name, (0, 0))[-1] and form.minima:
            d *= 2.0**form.bits / 2
        blocks[..., at : at + 2] = d.astype("<f2")[..., None].view(np.uint8)
    return blocks.reshape(*lead, -1)


def _hyperparameters(writer: Any, config: Any) -> None:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_vocab_size(config.vocab_size)
    count = getattr(config, "num_local_experts", 0) or getattr(config, "n_routed_experts", 0)
    if count:
        writer.add_expert_count(count)
        writer.add_expert_used_count(config.num_experts_per_tok)
        width = getattr(config, "moe_intermediate_size", config.intermediate_size)
        writer.add_expert_feed_forward_length(width)
    if config.model_type == "granitemoe":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    turning = size
    ropes = dict(config.rope_parameters or {})
    if "full_attention" in ropes:
        writer.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
        ropes = ropes["full_attention"]
    if config.model_type == "phi3":
        turning = int(size * ropes.get("partial_rotary_factor", 1.0))
    writer.add_rope_dimension_count(turning)
    stretch = ropes.get("alpha", 1.0) ** (size / (size - 2))
    writer.add_rope_freq_base(float(ropes["rope_theta"]) * stretch)
    kind = ropes.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(_scaling_type(kind))
        writer.add_rope_scaling_factor(ropes["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(ropes["original_max_position_embeddings"])
        if ropes.get("mscale_all_dim"):
            writer.add_rope_scaling_yarn_log_mul(0.1 * ropes["mscale_all_dim"])
    if kind == "longrope":
        own = getattr(config, "original_max_position_embeddings", 0)
        original = own or ropes["original_max_position_embeddings"]
        stretch = config.max_position_embeddings / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(np.sqrt(1 + np.log(stretch) / np.log(original)))
    if config.model_type in ("phi3", "gemma2", "gemma3_text", "gemma3n_text", "gpt_oss"):
        writer.add_sliding_window(config.sliding_window or 0)
    if config.model_type in ("gemma2", "gemma3_text"):
        for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
            if getattr(config, cap, None):
                getattr(writer, f"add_{cap}")(getattr(config, cap))


def _streams(writer: Any, config: Any) -> None:
    """Keys of gemma3n."""
    cuts = [NormalDist().inv_cdf(p) if p else -np.inf for p in config.activation_sparsity_pattern]
    writer.add_altup_active_idx(config.altup_active_idx)
    writer.add_altup_num_inputs(config.altup_num_inputs)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    writer.add_shared_kv_layers(config.num_kv_shared_layers)
    writer.add_activation_sparsity_scale([float(np.float32(cut)) for cut in cuts])
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])


def _latent(writer: Any, config: Any, name: str, apart: bool) -> None:
    """Keys of deepseek2 and minicpm3, some of them once more."""
    turning, rank = config.qk_rope_head_dim, config.kv_lora_rank
    whole, value = config.qk_nope_head_dim + turning, config.v_head_dim
    sizes = {"key_length": whole, "value_length": value}
    if apart:
        sizes = {"key_length": rank + turning, "value_length": rank, "head_count_kv": 1}
        sizes |= {"key_length_mla": whole, "value_length_mla": value}
    for data in writer.kv_data:
        for key in (*sizes, "rope.dimension_count"):
            data.pop(f"{name}.attention.{key}", None)
            data.pop(f"{name}.{key}", None)
    for key, size in sizes.items():
        writer.add_uint32(f"{name}.attention.{key}", size)
    writer.add_rope_dimension_count(turning)
    writer.add_kv_lora_rank(rank)
    if config.q_lora_rank:
        writer.add_q_lora_rank(config.q_lora_rank)
    if name == "minicpm3":
        return
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(False)


def _scaling_type(kind: str) -> Any:
    import gguf

    return gguf.RopeScalingType.LINEAR if kind == "linear" else gguf.RopeScalingType.YARN


def _factors(config: Any) -> dict[str, NDArray[np.float32]]:
    """Factors of rotary frequencies, as tensors."""
    ropes = dict(getattr(config, "rope_parameters", None) or {})
    if ropes.get("rope_type") == "longrope":
        return {
            f"rope_factors_{which}.weight": np.array(ropes[f"{which}_factor"], np.float32)
            for which in ("long", "short")
        }
    if ropes.get("rope_type") != "llama3":
        return {}
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    freqs = 1.0 / ropes["rope_theta"] ** (np.arange(0, size, 2) / size)
    low, high, factor = ropes["low_freq_factor"], ropes["high_freq_factor"], ropes["factor"]
    waves, length = 2 * np.pi / freqs, ropes["original_max_position_embeddings"]
    smooth = np.clip((length / waves - low) / (high - low), 0, 1)
    return {"rope_freqs.weight": (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)}


def letters() -> list[str]:
    """The 256 bytes as byte-level tokenizers write them, in their order."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _vocabulary(writer: Any, count: int) -> None:
    """256 letters, three special tokens, one merge, some texts of no use; the rest is unused."""
    tokens = [*letters(), "<s>", "</s>", "<|im_end|>", "th"]
    types = [1] * 256 + [3] * 3 + [1]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), count)]
    types += [1 if count > 2000 else 5] * (count - len(types))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(True)
