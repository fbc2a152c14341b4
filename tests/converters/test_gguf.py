"""GGUF files as sources: every family against transformers and llama.cpp, every type of blocks
against the package's own dequantization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.converters.kept import FLOATS
from edgert.converters.sources.base import open_source
from edgert.converters.sources.gguf_architectures import ARCHITECTURES
from edgert.converters.sources.gguf_tensors import KEPT
from edgert.kernels.encodings import dequantize
from numpy.typing import NDArray

from edgert.bundle import Bundle
from edgert.demo import demo_bundle
from edgert.graph import Graph, Weight
from edgert.session.base import Feed, Session
from edgert.session.reference import ReferenceSession
from tests.closeness import assert_close
from tests.converters import gguf_recurrent
from tests.converters.checkpoints import CASES, make_model
from tests.converters.gguf_files import TYPES, write_model

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

RMS = 1e-4
# Cases of which a GGUF file does not tell all, and what it takes for granted there.
UNTOLD = ("llama-dynamic", "mistral-window", "qwen2-window", "smollm3-head", "smollm3-window",
          "gemma2-mild", "gemma3-scaled", "gemma3n-whole", "minicpm3-plain", "cohere2-bias",
          "gpt2-untied", "qwen3_moe-shares", "qwen3_moe-step", "qwen3_next",
          "qwen3_next-listed")  # fmt: skip
GRANTED: dict[str, dict[str, Any]] = {
    "deepseek_v2": {
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 0.9,
            "mscale_all_dim": 0.9, "original_max_position_embeddings": 128,
        },
    },
    "deepseek_v2-narrow": {"attention_bias": False},
    "minicpm3": {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256},
    "gpt_oss": {"swiglu_limit": 7.0},
    "gpt_oss-plain": {"layer_types": None, "sliding_window": 24},
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3": {"query_pre_attn_scalar": 32, "num_hidden_layers": 6, "layer_types": None},
    "gemma3n": {"intermediate_size": 96},
    "gpt_neox-serial": {"hidden_act": "gelu"},
    "internlm3": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e7}},
    "ministral3-far": {
        "sliding_window": None,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e6, "factor": 8.0, "beta_fast": 32.0,
            "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.4,
        },
    },
    "phi": {"intermediate_size": 256, "num_key_value_heads": 4},
    "starcoder2": {"sliding_window": None},
    "gemma4-equal": {"attention_bias": False, "final_logit_softcapping": 30.0},
    "qwen3_5-tied": {"attention_bias": False},
    "qwen3_next-experts": {"norm_topk_prob": True},
    "smollm3": {
        "no_rope_layers": None, "no_rope_layer_interval": 4, "num_hidden_layers": 4,
    },
    **gguf_recurrent.GRANTED,
}  # fmt: skip


def model_of(case: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Any:
    kind, changes = CASES[case]
    monkeypatch.setitem(CASES, case, (kind, {**changes, **GRANTED.get(case, {}), **more}))
    return make_model(case)


def bundle_of(path: Path, out: Path, **options: Any) -> Path:
    convert(path, out, progress=False, golden=False, **options)
    return out


def logits(bundle: Path, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """Of the reference session, with every weight dequantized."""
    with Bundle.open(bundle) as opened:
        dense = {name: dequantize(w) for name, w in opened.weights().items()}
        graph = opened.graph()
    plain = graph.replace(weights={n: Weight(w.shape) for n, w in graph.weights.items()})
    return rows(ReferenceSession(plain, dense), ids)


def rows(session: Session, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    state = session.new_state()
    out = session.step([Feed(state, ids, "all")])[0].logits
    session.close()
    return out


def expected(model: Any, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    import torch

    with torch.no_grad():
        found = model(torch.tensor(ids[None].astype(np.int64))).logits[0]
    return np.asarray(found.numpy(), np.float32)


def prompt(length: int, vocab: int = 256) -> NDArray[np.int32]:
    return np.random.default_rng(length).integers(0, vocab, length).astype(np.int32)


DENSE = ("apertus", "cohere2", "ernie4_5", "exaone4", "gemma", "glm4", "gpt2", "gpt_neox",
         "granite", "ministral3-far", "olmo3", "phi", "stablelm", "starcoder2")  # fmt: skip
QUICK = ("llama-llama3", "qwen2-yarn", "qwen3", "gemma2", "gemma3", "gemma3n", "phi3-longrope",
         "smollm3", "arcee-bias", "hunyuan", "qwen3_moe", "granitemoe", "gpt_oss", "deepseek_v2",
         "deepseek_v2-narrow", "minicpm3", *gguf_recurrent.QUICK, "qwen3_5", "qwen3_5_moe",
         "qwen3_next-experts", "gemma4")  # fmt: skip


def cases() -> list[Any]:
    """One of each architecture, the others slow."""
    import transformers

    known = {kind for row in ARCHITECTURES.values() for kind in (row.model_type, *row.also)}
    told = [
        case
        for case, (kind, _) in CASES.items()
        if case not in UNTOLD and getattr(transformers, kind).model_type in known
    ]
    return [pytest.param(c, marks=[] if c in QUICK + DENSE else pytest.mark.slow) for c in told]


@pytest.mark.parametrize("case", cases())
def test_a_family_is_transformers(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(case, monkeypatch)
    write_model(model, tmp_path / "m.gguf")
    ids = prompt(63)
    got = logits(bundle_of(tmp_path / "m.gguf", tmp_path / "m.edge"), ids)
    assert_close(case, expected(model, ids), got, rms=RMS)


def test_a_scaling_without_a_type_is_linear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As older files have it."""
    monkeypatch.setattr(gguf.GGUFWriter, "add_rope_scaling_type", lambda *_: None)
    model = model_of("llama-linear", monkeypatch)
    write_model(model, tmp_path / "m.gguf")
    got = logits(bundle_of(tmp_path / "m.gguf", tmp_path / "m.edge"), prompt(63))
    assert_close("linear", expected(model, prompt(63)), got, rms=RMS)


def test_first_files_of_gemma_2_tell_no_caps_and_no_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "sliding_window"):
        monkeypatch.setattr(gguf.GGUFWriter, f"add_{key}", lambda *_: None)
    published = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    model = model_of("gemma2", monkeypatch, sliding_window=4096, **published)
    write_model(model, tmp_path / "m.gguf")
    got = logits(bundle_of(tmp_path / "m.gguf", tmp_path / "m.edge"), prompt(63))
    assert_close("gemma2", expected(model, prompt(63)), got, rms=RMS)
    with open_source(tmp_path / "m.gguf") as source:
        found: Any = source
        assert found.config["sliding_window"] == 4096


# --- the demo model in every type of blocks ---------------------------------------------------


class Demo:
    """The demo's weights under transformers' names, as far as a GGUF writer reads a model."""

    def __init__(self, layers: int = 2) -> None:
        from types import SimpleNamespace

        with Bundle.open(demo_bundle()) as bundle:
            graph, weights = bundle.graph(), bundle.weights()
            dense = {name: dequantize(w) for name, w in weights.items()}
        node = next(node for node in graph.nodes if node.op == "attention")
        heads, groups, size = (int(node.attrs[k]) for k in ("heads", "kv_heads", "head_dim"))
        found = {"model.embed_tokens.weight": dense["embed"], "model.norm.weight": dense["norm"]}
        for i in range(layers):
            at, to = f"layers.{i}", f"model.layers.{i}"
            q, k, v = np.split(dense[f"{at}.qkv"], [heads * size, (heads + groups) * size])
            gate, up = np.split(dense[f"{at}.gate_up"], 2)
            found |= {
                f"{to}.input_layernorm.weight": dense[f"{at}.norm1"],
                f"{to}.self_attn.q_proj.weight": q, f"{to}.self_attn.k_proj.weight": k,
                f"{to}.self_attn.v_proj.weight": v,
                f"{to}.self_attn.o_proj.weight": dense[f"{at}.o"],
                f"{to}.post_attention_layernorm.weight": dense[f"{at}.norm2"],
                f"{to}.mlp.gate_proj.weight": gate, f"{to}.mlp.up_proj.weight": up,
                f"{to}.mlp.down_proj.weight": dense[f"{at}.down"],
            }  # fmt: skip
        self.found = found
        vocab, width = dense["embed"].shape
        freqs = dense[node.weights["inv_freq"]]
        self.config = SimpleNamespace(
            model_type="llama", vocab_size=vocab, hidden_size=width, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=groups, head_dim=size,
            intermediate_size=len(gate), max_position_embeddings=graph.context,
            rms_norm_eps=1e-5, tie_word_embeddings=True,
            rope_parameters={"rope_theta": float(freqs[1]) ** (-len(freqs))},
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        import torch

        return {name: torch.from_numpy(values) for name, values in self.found.items()}


@pytest.fixture(scope="module")
def demo() -> Demo:
    return Demo()


def mostly(kind: str) -> Any:
    """The type, and Q8_0 where rows are no whole number of its blocks."""
    whole = 256 if kind.endswith(("_K", "_XS")) else 1
    return lambda name, rows: "Q8_0" if rows.shape[1] % whole else kind


@pytest.mark.parametrize("kind", TYPES)
def test_the_demo_in_every_type(kind: str, demo: Demo, tmp_path: Path) -> None:
    """Logits of what the package reads of the file, and of what the bundle holds of it."""
    read = write_model(demo, tmp_path / "m.gguf", mostly(kind))
    bundle = bundle_of(tmp_path / "m.gguf", tmp_path / "m.edge")
    with Bundle.open(bundle) as opened:
        graph, found = opened.graph(), opened.weights()
        dense = {name: dequantize(w) for name, w in found.items()}
        used = {w.encoding for w in graph.weights.values()}
    plain = graph.replace(weights={n: Weight(w.shape) for n, w in graph.weights.items()})
    theirs = dict(dense)
    theirs |= _of_the_package(read, graph)
    ids = prompt(24, demo.config.vocab_size)
    want = rows(ReferenceSession(plain, theirs), ids)
    got = rows(ReferenceSession(plain, dense), ids)
    assert_close(kind, want, got, rms=1e-5)
    kept = KEPT[kind].encoding if kind in KEPT else FLOATS[kind]
    assert kept in used
    if kind in KEPT:
        assert all(np.array_equal(theirs[name], dense[name]) for name in graph.weights)
    else:
        assert used <= {"f32", "f16"}


def _of_the_package(read: dict[str, Any], graph: Graph) -> dict[str, Any]:
    """Graph weights of the values that the package reads."""
    found = {"embed": read["model.embed_tokens.weight"], "norm": read["model.norm.weight"]}
    for name in graph.weights:
        if not name.startswith("layers."):
            continue
        layer, role = name.split(".")[1:3]
        keys = ROLES[role]
        at = f"model.layers.{layer}"
        parts = [read[f"{at}.{key}.weight"] for key in keys]
        found[name] = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return found


ROLES = {
    "norm1": ("input_layernorm",), "norm2": ("post_attention_layernorm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",), "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}  # fmt: skip
