"""Checkpoints in another dress than their family's: transformers' logits, or one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.converters.families import build
from safetensors.numpy import load_file, save_file

from edgert import notices
from edgert.bundle import Bundle
from edgert.errors import ConvertError
from edgert.session import SessionOptions, open_session
from tests.closeness import assert_close
from tests.converters.checkpoints import (
    SIZES,
    expected_logits,
    prompt,
    scatter,
    write_checkpoint,
    write_tokenizer,
)
from tests.converters.published import CONFIGS
from tests.converters.test_families import RMS, run

Arrays = dict[str, np.ndarray]
Edit = Callable[[Arrays], Arrays | None]


def change(folder: Path, edit: Edit | None = None, **config: Any) -> None:
    """Edit a checkpoint's tensors, and set keys of its config (None removes one)."""
    path = folder / "config.json"
    found = {**json.loads(path.read_text("utf-8")), **config}
    path.write_text(
        json.dumps({k: v for k, v in found.items() if config.get(k, 0) is not None}), "utf-8"
    )
    if edit is not None:
        tensors = load_file(folder / "model.safetensors")
        save_file(edit(tensors) or tensors, folder / "model.safetensors", {"format": "pt"})


def ours(folder: Path, length: int = 63) -> np.ndarray:
    """Logits of the converted checkpoint."""
    out = folder.with_name(f"{folder.name}.edge")
    convert(folder, out, quant="f32", golden=False, progress=False, force=True)
    with Bundle.open(out) as bundle:
        session = open_session(bundle, SessionOptions("cpu", threads=1))
        found = run(session, prompt(length))
        session.close()
    return found


def theirs(folder: Path, length: int = 63) -> np.ndarray:
    """transformers' logits of the same folder."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    return expected_logits(model, prompt(length))


def compare(folder: Path, length: int = 63) -> None:
    assert_close(folder.name, theirs(folder, length), ours(folder, length), rms=RMS)


def refusal(folder: Path) -> ConvertError:
    with pytest.raises(ConvertError) as info:
        ours(folder)
    return info.value


def bare(tensors: Arrays) -> Arrays:
    return {name.removeprefix("model."): array for name, array in tensors.items()}


@pytest.mark.parametrize("case", ["qwen3", "llama-untied", "gemma2"])
def test_tensors_of_the_base_model(tmp_path: Path, case: str) -> None:
    write_checkpoint(case, tmp_path / case)
    change(tmp_path / case, bare)
    compare(tmp_path / case)


def test_masks_that_old_checkpoints_store_are_left_out(tmp_path: Path) -> None:
    at = "gpt_neox.layers.0.attention."
    masks = {f"{at}bias": np.ones((1, 1, 4, 4), np.bool_), f"{at}masked_bias": np.float32([-1e9])}
    write_checkpoint("gpt_neox", tmp_path / "m")
    change(tmp_path / "m", lambda tensors: {**tensors, **masks})
    compare(tmp_path / "m")


def test_gpt2_as_it_was_published(tmp_path: Path) -> None:
    """Names of the base model, and each layer's mask."""
    masks = {
        f"h.0.attn.{name}": np.ones(shape, np.bool_)
        for name, shape in (("bias", (1, 1, 4, 4)), ("masked_bias", ()))
    }
    write_checkpoint("gpt2", tmp_path / "m")
    change(
        tmp_path / "m",
        lambda ts: {**{n.removeprefix("transformer."): t for n, t in ts.items()}, **masks},
    )
    compare(tmp_path / "m")


def test_keys_that_no_layer_reads_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published Gemma 4 checkpoints hold them for layers that share another layer's."""
    monkeypatch.setattr(notices, "_shown", set())
    at = "model.layers.3.self_attn."
    unread = {
        f"{at}k_proj.weight": np.ones((64, 64), np.float32),
        f"{at}v_proj.weight": np.ones((64, 64), np.float32),
        f"{at}k_norm.weight": np.ones(32, np.float32),
    }
    write_checkpoint("gemma4", tmp_path / "m")
    change(tmp_path / "m", lambda tensors: {**tensors, **unread})
    compare(tmp_path / "m")
    assert "3 tensors of keys and values" in caplog.text


def test_a_base_model_without_its_head_is_not_enough(tmp_path: Path) -> None:
    write_checkpoint("llama-untied", tmp_path / "m")
    change(tmp_path / "m", lambda t: {k: v for k, v in bare(t).items() if k != "lm_head.weight"})
    assert "tensor 'lm_head.weight' [272, 64] is missing" in refusal(tmp_path / "m").message


def test_a_tied_head_with_other_values_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint("llama-untied", tmp_path / "m")
    change(tmp_path / "m", tie_word_embeddings=True)
    compare(tmp_path / "m")
    assert "whose values differ: the stored head is used" in caplog.text


def under(prefix: str, tensors: Arrays) -> Arrays:
    return {f"{prefix}{name}": array for name, array in tensors.items()}


WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "transformer.", "model.",
            "language_model.", "module._orig_mod.")  # fmt: skip


@pytest.mark.parametrize("prefix", WRAPPERS)
@pytest.mark.parametrize(("case", "inner"), [("llama-untied", dict), ("qwen3", bare)])
def test_tensors_under_a_wrapper(
    tmp_path: Path, prefix: str, case: str, inner: Edit, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / case
    write_checkpoint(case, folder)
    want = theirs(folder)
    change(folder, lambda tensors: under(prefix, inner(tensors) or tensors))
    assert_close(case, want, ours(folder), rms=RMS)
    if not (prefix == "model." and inner is bare):  # these are the usual names
        assert "are taken without their wrapper" in caplog.text


@pytest.mark.parametrize(
    "rename",
    [
        lambda n: n.replace(".self_attn.", "._orig_mod.self_attn."),
        lambda n: n.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
        lambda n: n if "lm_head" in n else f"model.{n}",
        lambda n: n if "lm_head" in n else f"language_model.{n}",
    ],
)
def test_tensors_with_a_wrapper_around_a_part(tmp_path: Path, rename: Callable[[str], str]) -> None:
    write_checkpoint("llama-untied", tmp_path / "m")
    want = theirs(tmp_path / "m")
    change(tmp_path / "m", lambda tensors: {rename(n): a for n, a in tensors.items()})
    assert_close("m", want, ours(tmp_path / "m"), rms=RMS)


@pytest.mark.parametrize(
    ("edit", "prefixes"),
    [
        (lambda t: under("student.", t), "'student.'"),
        (lambda t: under("student.", bare(t)), "'student.'"),
        (lambda t: {**under("module.", t), **under("ema.", t)}, "'ema.' or 'module.'"),
        (lambda t: {**under("module.", t), "module.value_head.weight": np.ones((1, 64), "f4")},
         "'module.'"),
        (lambda t: {n if "0" in n else f"module.{n}": a for n, a in t.items()}, "'module.'"),
        (lambda t: under("module.", without("1.mlp.up_proj.weight")(t) or t), "'module.'"),
    ],
)  # fmt: skip
def test_a_prefix_that_is_no_plain_wrapper_is_one_line(
    tmp_path: Path, edit: Edit, prefixes: str
) -> None:
    write_checkpoint("llama-untied", tmp_path / "m")
    change(tmp_path / "m", edit)
    error = refusal(tmp_path / "m")
    assert error.code == "tensor-names"
    assert f"tensors under the prefix {prefixes}, expected names such as 'model." in error.message
    assert "\n" not in error.message


def without(ending: str) -> Edit:
    return lambda tensors: {k: v for k, v in tensors.items() if not k.endswith(ending)}


@pytest.mark.parametrize("case", ["llama-bias", "qwen3-bias", "smollm3-head"])
def test_an_output_projection_may_have_no_bias(tmp_path: Path, case: str) -> None:
    write_checkpoint(case, tmp_path / case)
    change(tmp_path / case, without("o_proj.bias"))
    compare(tmp_path / case)


@pytest.mark.parametrize("ending", ["0.self_attn.o_proj.bias", "q_proj.bias", "up_proj.bias"])
def test_other_biases_may_not_be_missing(tmp_path: Path, ending: str) -> None:
    write_checkpoint("llama-bias", tmp_path / "m")
    change(tmp_path / "m", without(ending))
    assert f"{ending}' [" in refusal(tmp_path / "m").message


@pytest.mark.parametrize("wrapper", ["", "module.", "base_model.model."])
@pytest.mark.parametrize("prefix", ["language_model.", "model.language_model."])
def test_the_text_of_a_composite_gemma_3(tmp_path: Path, prefix: str, wrapper: str) -> None:
    """Under the prefixes that its text part has had, among vision tensors."""
    import torch
    import transformers

    torch.manual_seed(0)
    text = {**SIZES, "num_hidden_layers": 2, "head_dim": 32, "sliding_window": 37}
    text["layer_types"] = ["sliding_attention", "full_attention"]
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 14, "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(
        text_config={**text, "eos_token_id": 1}, vision_config=vision, mm_tokens_per_image=1
    )
    model = transformers.Gemma3ForConditionalGeneration(config).float().eval()
    scatter(model)
    folder = tmp_path / "gemma3"
    model.save_pretrained(folder)
    write_tokenizer(folder)

    def renamed(tensors: Arrays) -> Arrays:
        text_names = [n for n in tensors if "language_model" in n]
        out = {n: a for n, a in tensors.items() if "language_model" not in n}
        inner = "model." if prefix == "language_model." else ""
        for name in text_names:
            tail = name.rpartition("language_model.")[2].removeprefix("model.")
            out[f"{prefix}{inner}{tail}"] = tensors[name]
        return out

    change(folder, renamed)
    want = theirs(folder)
    change(folder, lambda tensors: under(wrapper, tensors))
    assert_close("gemma3", want, ours(folder), rms=RMS)


def test_absent_keys_of_a_composite_config_have_their_defaults() -> None:
    """As the published 4B and 12B files leave them out."""
    inner = {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
        "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }  # fmt: skip
    whole = {
        "model_type": "gemma3",
        "text_config": inner,
        "vision_config": {},
        "boi_token_index": 1,
    }
    graph = build(whole).graph
    assert (graph.context, graph.outputs[0].shape) == (131_072, ("R", 262_208))
    with pytest.raises(ConvertError, match=r"expected that part alone, or no keys \['mystery'\]"):
        build({**whole, "mystery": 1})


def test_other_composite_models_are_refused() -> None:
    with pytest.raises(ConvertError, match=r"of several parts.*'llama'") as info:
        build({"model_type": "llava", "text_config": {"model_type": "llama"}})
    assert "gemma3" in str(info.value.hint)


STALE = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def test_a_left_over_quantization_config_is_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint("llama", tmp_path / "m")
    want = theirs(tmp_path / "m")
    change(tmp_path / "m", quantization_config=STALE)
    assert_close("llama", want, ours(tmp_path / "m"), rms=RMS)
    assert "its quantization_config is left over" in caplog.text


def gptq(tensors: Arrays) -> Arrays:
    out = {}
    for name, array in tensors.items():
        if "_proj.weight" in name:
            base = name.removesuffix(".weight")
            out[f"{base}.qweight"] = np.zeros((array.shape[1] // 8, array.shape[0]), np.int32)
            out[f"{base}.scales"] = np.zeros((1, array.shape[0]), np.float16)
            out[f"{base}.g_idx"] = np.zeros(array.shape[1], np.int32)
        else:
            out[name] = array
    return out


def eight_bits(tensors: Arrays) -> Arrays:
    return {n: a.astype(np.int8) if "_proj" in n else a for n, a in tensors.items()}


@pytest.mark.parametrize(
    ("edit", "config"),
    [
        (gptq, {"quant_method": "quip", "bits": 4}),
        (gptq, None),  # its settings then lie in another file
        (eight_bits, {"quant_method": "fbgemm_fp8"}),
    ],
)
def test_a_quantized_checkpoint_is_one_clear_line(
    tmp_path: Path, edit: Edit, config: dict[str, Any] | None
) -> None:
    write_checkpoint("llama", tmp_path / "m")
    change(tmp_path / "m", edit, quantization_config=config)
    error = refusal(tmp_path / "m")
    assert error.code == "quantized"
    assert "is quantized already (" in error.message
    assert "\n" not in error.message


@pytest.mark.parametrize("case", ["phi3", "qwen3", "llama"])
def test_code_beside_a_known_architecture_is_not_used(
    tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As transformers loads it without trust_remote_code."""
    write_checkpoint(case, tmp_path / "m")
    change(tmp_path / "m", auto_map={"AutoConfig": "c.C", "AutoModelForCausalLM": "modeling_x.X"})
    compare(tmp_path / "m")
    assert "its own code (auto_map: {'AutoConfig': 'c.C'" in caplog.text


def test_keys_beside_a_text_part_may_say_nothing() -> None:
    inner = {"hidden_size": 64, "num_hidden_layers": 1, "head_dim": 32, "vocab_size": 272}
    whole = {"model_type": "gemma3", "text_config": inner, "vision_config": {}}
    neutral = {"seq_length": 8, "use_qk_norm": False, "mystery": None, "num_experts": 0}
    assert build({**whole, **neutral}).graph == build(whole).graph
    with pytest.raises(ConvertError, match="no keys"):
        build({**whole, "attention_multiplier": 2.0, "scale_depth": "x"})


@pytest.mark.parametrize("found", [["MyForCausalLM"], ["LlamaForCausalLM"], None])
def test_code_of_another_architecture_stays_an_error(tmp_path: Path, found: Any) -> None:
    write_checkpoint("qwen3", tmp_path / "m")
    change(tmp_path / "m", auto_map={"AutoModelForCausalLM": "m.M"}, architectures=found)
    assert refusal(tmp_path / "m").code == "remote-code"


def test_a_gguf_file_beside_a_config_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    file = tmp_path / "m" / "model-Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    (tmp_path / "m" / "config.json").write_text("{}", "utf-8")
    with pytest.raises(ConvertError, match=r"in the format GGUF \(model-Q4_K_M.gguf\)") as info:
        convert(tmp_path / "m", tmp_path / "out.edge")
    assert info.value.code == "gguf"
    assert f"edgert convert {file} -o model-Q4_K_M.edge" in str(info.value.hint)
    for source in (file, tmp_path / "m"):
        (tmp_path / "m" / "config.json").unlink(missing_ok=True)
        with pytest.raises(ConvertError, match="the file has 4 bytes, expected at least 24"):
            convert(source, tmp_path / "out.edge")


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


@pytest.mark.parametrize("case", ["qwen3", "llama", "mistral-full"])
def test_yarn_reaches_its_scaled_length(tmp_path: Path, case: str) -> None:
    folder = tmp_path / case
    write_checkpoint(case, folder)
    scaling = {**YARN, "attn_factor": 0.878, "finetuned": True}
    change(folder, rope_scaling=scaling, rope_parameters=None, max_position_embeddings=128)
    compare(folder, 500)
    with Bundle.open(folder.with_name(f"{case}.edge")) as bundle:
        assert bundle.graph().context == 512


SMOL, MISTRAL = "SmolLM2-135M", "Mistral-7B-v0.1"
FULL, SLIDING = ["full_attention"], ["sliding_attention"]


@pytest.mark.parametrize(
    ("name", "harmless"),
    [
        (SMOL, {"max_sequence_length": 8192, "model_max_length": 8192}),
        (SMOL, {"_flash_attn_2_enabled": True, "use_flash_attention_2": False}),
        (SMOL, {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}),
        (SMOL, {"sliding_window": None, "layer_types": FULL * 30}),
        (SMOL, {"architectures": ["LlamaModel"]}),
        (MISTRAL, {"layer_types": SLIDING * 32}),
        (MISTRAL, {"sliding_window": None, "layer_types": FULL * 32}),
    ],
)
def test_keys_that_change_nothing(name: str, harmless: dict[str, Any]) -> None:
    changed = {**CONFIGS[name], **harmless}
    used = {k: v for k, v in changed.items() if k in CONFIGS[name]}
    assert build(changed).graph == build(used).graph


# What published configs of these families and of their relatives carry.
HARMLESS: list[dict[str, Any]] = [
    dict.fromkeys(("attn_logit_softcapping", "moe_intermediate_size", "quantization_config", "x")),
    {"seq_length": 8192, "hidden_dropout": 0.1, "z_loss": 0.0, "router_aux_loss_coef": 0.001},
    {"num_experts": 0, "moe_intermediate_size": 768, "decoder_sparse_step": 1},
    {"use_qk_norm": False, "qk_layernorm": False, "fused_attention": False, "bias": False},
    {"flash_attention": True, "pad_vocab_size_multiple": 8, "eos_token": "</s>"},
    {"residual_multiplier": 1.0, "logits_scaling": 1, "embedding_multiplier": 1.0},
    {"tie_weights": False, "_remove_final_layer_norm": False, "position_embedding_type": "rope"},
    {"base_model_tp_plan": {"layers.*": "colwise"}, "unsloth_anything": [1], "mlp_only_layers": []},
]


@pytest.mark.parametrize("harmless", HARMLESS, ids=lambda keys: next(iter(keys)))
@pytest.mark.parametrize(
    "name",
    [SMOL, MISTRAL, "Qwen2.5-0.5B", "Qwen3-0.6B", "gemma-2-2b", "gemma-3-1b", "Phi-4-mini"],
)
def test_keys_of_others_that_say_nothing(name: str, harmless: dict[str, Any]) -> None:
    known = {key: value for key, value in harmless.items() if key not in CONFIGS[name]}
    assert build({**CONFIGS[name], **known}).graph == build(CONFIGS[name]).graph


def test_neutral_values_that_follow_from_sizes() -> None:
    config = CONFIGS[SMOL]  # 30 layers, 9 heads of 64
    neutral = {
        "attention_multiplier": 0.125, "query_pre_attn_scalar": 64, "head_size": 64,
        "scale_depth": 30**0.5, "dim_model_base": 576, "scale_emb": 1, "n_layers": 30,
        "norm_eps": config["rms_norm_eps"], "no_rope_layers": [1] * 30, "max_window_layers": 24,
    }  # fmt: skip
    assert build({**config, **neutral}).graph == build(config).graph


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (SMOL, {"use_sliding_window": True}),
        (SMOL, {"sliding_window": 4096}),
        (SMOL, {"sliding_window": 4096, "use_sliding_window": True}),
        (SMOL, {"layer_types": [*FULL * 29, *SLIDING]}),
        (SMOL, {"layer_types": SLIDING * 30}),
        (SMOL, {"layer_types": FULL * 29}),
        (SMOL, {"layer_types": "full_attention"}),
        (MISTRAL, {"layer_types": FULL * 32}),
        (MISTRAL, {"layer_types": [*FULL * 16, *SLIDING * 16]}),
        (SMOL, {"logit_scale": 2.0}),
    ],
)
def test_keys_that_may_change_something_stay_errors(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(ConvertError, match="is unknown"):
        build({**CONFIGS[name], **change})
