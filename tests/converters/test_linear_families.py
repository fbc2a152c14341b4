"""Models with linear attention against the formulas of their paper, written out in float64."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.converters.families import build
from numpy.typing import NDArray
from safetensors.numpy import save_file

from edgert.bundle import Bundle
from edgert.errors import ConvertError
from edgert.evaluation.verify import greedy
from edgert.session import Feed, Session, SessionOptions, open_session
from edgert.session.onnx_io import Variant

from ..closeness import assert_close
from ..onnx_model import ort_session
from .checkpoints import CONTEXT, VOCAB, prompt, write_tokenizer

Array = NDArray[Any]
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "hidden_act": "silu",
}  # fmt: skip
MIXED = ["linear_attention", "full_attention", "linear_attention"]
CASES: dict[str, dict[str, Any]] = {
    "2mamba": {"model_type": "2mamba", "architectures": ["TwoMambaForCausalLM"]},
    "mamba2s": {
        "model_type": "2mamba", "num_key_value_heads": 4, "linear_attention": {"mode": "mamba2s"},
    },
    "relu": {
        "model_type": "2mamba", "linear_attention": {"mode": "relu", "decay": False, "conv": 0},
    },
    "2mamba-e": {"model_type": "2mamba", "linear_attention": {"mode": "2mamba-e"}},
    "2mamba-mixed": {
        "model_type": "2mamba", "head_dim": 24, "layer_types": MIXED, "rope_theta": 5000.0,
        "linear_attention": {"mode": "square", "chunk": 32, "conv": 4},
    },
    "llama-converted": {
        "model_type": "llama", "rope_theta": 5000.0, "layer_types": MIXED, "num_hidden_layers": 3,
        "linear_attention": {"mode": "shifted", "key_mean": True, "maps": True, "features": 12},
    },
    "llama-windowed": {
        "model_type": "llama", "rope_theta": 5000.0, "layer_types": MIXED, "num_hidden_layers": 3,
        "linear_attention": {
            "mode": "shifted", "key_mean": True, "maps": True, "features": 12, "chunk": 64,
            "window": True,
        },
    },
    "2mamba-windowed": {
        "model_type": "2mamba", "linear_attention": {"window": True, "chunk": 24},
    },
    "qwen3-converted": {
        "model_type": "qwen3", "head_dim": 32, "rope_theta": 5000.0,
        "layer_types": ["linear_attention"] * 2 + ["full_attention"],
        "linear_attention": {"mode": "shifted"},
    },
}  # fmt: skip


def config_of(case: str) -> dict[str, Any]:
    return SIZES | CASES[case]


def tensors_of(config: Mapping[str, Any]) -> dict[str, Array]:
    """Random float32 tensors of a checkpoint; decays that last."""
    rng = np.random.default_rng(len(str(config)))
    made = {}
    for recipe in build(config).tensors.values():
        for part in recipe.parts:
            values = rng.standard_normal(part.shape)
            wide = part.shape[1] ** 0.5 if len(part.shape) > 1 else 1.0
            if "norm" in part.name:
                values = 1 + 0.3 * values
            elif "decay_proj.bias" in part.name:
                values = values - 4
            else:
                values = values * (0.3 if len(part.shape) == 1 else 1.4 / wide)
            made[part.name] = values.astype(np.float32)
    return made


def norm(x: Array, weight: Array, eps: float = 1e-5) -> Array:
    out: Array = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight
    return out


def softplus(x: Array) -> Array:
    out: Array = np.logaddexp(0, x)
    return out


class Model(NamedTuple):
    """A checkpoint, computed as the paper and `linear`'s docstring say."""

    config: dict[str, Any]
    tensors: dict[str, Array]

    def __call__(self, ids: Array) -> Array:
        t, count = self.tensors, self.config["num_hidden_layers"]
        x = t["model.embed_tokens.weight"][ids]
        for layer in range(count):
            at = f"model.layers.{layer}."
            h = norm(x, t[f"{at}input_layernorm.weight"])
            x = x + self.attention(h, layer) @ t[f"{at}self_attn.o_proj.weight"].T
            h = norm(x, t[f"{at}post_attention_layernorm.weight"])
            gate, up = (h @ t[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
            x = x + (gate / (1 + np.exp(-gate)) * up) @ t[f"{at}mlp.down_proj.weight"].T
        return norm(x, t["model.norm.weight"]) @ t["model.embed_tokens.weight"].T

    def attention(self, h: Array, layer: int) -> Array:
        c, at = self.config, f"model.layers.{layer}.self_attn."
        t = {k.removeprefix(at): v for k, v in self.tensors.items() if k.startswith(at)}
        kinds = c.get("layer_types") or ["linear_attention"] * c["num_hidden_layers"]
        linear = kinds[layer] == "linear_attention"
        spec = c.get("linear_attention", {})
        heads, groups = c["num_attention_heads"], c["num_key_value_heads"]
        rows = np.concatenate([h @ t[f"{n}_proj.weight"].T for n in "qkv"], axis=1)
        if "conv.weight" in t:
            width = t["conv.weight"].shape[2]
            before = np.concatenate([np.zeros((width - 1, rows.shape[1])), rows])
            taps = (before[i : i + len(rows)] * t["conv.weight"][:, 0, i] for i in range(width))
            rows = sum(taps) + t["conv.bias"]
        rows = rows.reshape(len(h), heads + 2 * groups, -1)
        q, k, v = np.split(rows, [heads, heads + groups], axis=1)
        if "q_norm.weight" in t:
            q, k = norm(q, t["q_norm.weight"]), norm(k, t["k_norm.weight"])
        if c["model_type"] != "2mamba" or not linear:
            q, k = self.rotated(q), self.rotated(k)
        size, share = q.shape[-1], heads // groups
        logits = np.einsum("thd,jhd->htj", q, k.repeat(share, 1)) * size**-0.5
        if "key_mean" in t:
            k = k - t["key_mean"]
        if "q_features.weight" in t:
            maps = (t[f"{n}_features.weight"].reshape(groups, size, -1) for n in "qk")
            wide, narrow = maps
            q = np.einsum("thd,hdr->thr", q, wide.repeat(share, 0))
            k = np.einsum("tgd,gdr->tgr", k, narrow)
        mode = spec.get("mode", "square") if linear else "softmax"
        if mode == "relu":
            q, k = np.maximum(q, 0), np.maximum(k, 0)
        k, v = k.repeat(share, 1), v.repeat(share, 1)
        x = np.einsum("thr,jhr->htj", q, k) * size**-0.5
        rate = np.zeros((len(h), heads))
        if "decay_proj.weight" in t:
            gates = h @ t["decay_proj.weight"].T + t.get("decay_proj.bias", 0)
            rate = -softplus(gates).repeat(share, 1)
        if mode == "mamba2s":
            v = softplus(h @ t["dt_proj.weight"].T).repeat(share, 1)[..., None] * v
        window = logits if spec.get("window") and linear else None
        y = self.mixed(x, rate, v, mode, t, share, window, spec.get("chunk", 64))
        return norm(y, t["norm.weight"]) if "norm.weight" in t else y

    @staticmethod
    def mixed(
        x: Array, rate: Array, v: Array, mode: str, t: Mapping[str, Array], share: int,
        window: Array | None, chunk: int,
    ) -> Array:  # fmt: skip
        seen, c = np.tri(x.shape[1], dtype=bool), np.cumsum(rate, axis=0).T
        fade = np.exp(np.where(seen, c[:, :, None] - c[:, None, :], -np.inf))
        if mode in ("softmax", "2mamba-e"):
            x = x if mode == "softmax" else x + np.where(seen, c[:, :, None] - c[:, None, :], 0)
            w = np.exp(x - np.where(seen, x, -np.inf).max(-1, keepdims=True)) * seen
        elif mode == "square":
            w = x**2 * fade
        elif mode == "shifted":
            beta, gamma = softplus(t["beta"]), 1e-3 + softplus(t["gamma"])
            beta, gamma = (p.repeat(share)[:, None, None] for p in (beta, gamma))
            w = ((x + beta) ** 2 + gamma) * fade
        else:
            w = x * fade
        if window is not None:
            place = np.arange(len(v))
            near = seen & (place // chunk >= place[:, None] // chunk - 1)
            top = np.where(near, window, -np.inf).max(-1, keepdims=True)
            exact = np.exp(t["log_window"])[:, None, None] * np.exp(window - top)
            w = np.where(near, exact, w)
        y = np.einsum("htj,jhp->thp", w, v)
        if mode != "mamba2s":
            y = y / (w.sum(-1).T[..., None] + (1e-6 if mode in ("square", "relu") else 0))
        out: Array = y.reshape(len(y), -1)
        return out

    def rotated(self, x: Array) -> Array:
        half = x.shape[-1] // 2
        angle = np.arange(len(x))[:, None] * self.config["rope_theta"] ** (-np.arange(half) / half)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def write_checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, Array]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    save_file({name: np.ascontiguousarray(a) for name, a in tensors.items()},
              folder / "model.safetensors")  # fmt: skip
    write_tokenizer(folder)


class Converted(NamedTuple):
    case: str
    bundle: Bundle
    expected: Array


@pytest.fixture(scope="module", params=CASES)
def converted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Converted]:
    folder, config = tmp_path_factory.mktemp(request.param), config_of(request.param)
    tensors = tensors_of(config)
    write_checkpoint(folder / "checkpoint", config, tensors)
    convert(folder / "checkpoint", folder / "out.edge", quant="f32", golden=False, progress=False)
    model = Model(config, {name: a.astype(np.float64) for name, a in tensors.items()})
    with Bundle.open(folder / "out.edge") as bundle:
        yield Converted(request.param, bundle, model(prompt(300)))


def logits(session: Session, pieces: list[int]) -> Array:
    state, found, ids = session.new_state(), [], prompt(300)
    for count in pieces:
        ids_now = ids[state.length : state.length + count]
        found.append(session.step([Feed(state, ids_now, "all")])[0].logits)
        state.commit(count)
    state.close()
    return np.concatenate(found)


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_logits_are_those_of_the_formulas(converted: Converted, device: str) -> None:
    session = open_session(converted.bundle, SessionOptions(device, threads=1))
    got = logits(session, [200, 100])
    assert_close(f"{converted.case} {device}", converted.expected, got, rms=1e-4)
    if device == "cpu":
        assert np.array_equal(logits(session, [1, 150, 1, 1, 1, 60, 86]), got)
    session.close()


def test_greedy_text_is_the_same_on_onnxruntime(converted: Converted, tmp_path: Path) -> None:
    bundle = converted.bundle
    graph, weights = bundle.graph(), bundle.weights()
    cpu = open_session(bundle, SessionOptions("cpu", threads=1))
    ids = prompt(100, 1).tolist()
    expected = greedy(cpu, ids, 64)
    cpu.close()
    ort = ort_session(graph, weights, tmp_path, Variant())
    assert greedy(ort, ids, 64) == expected
    assert len(expected) == 64
    ort.close()


def test_two_kinds_of_state_stand_in_one_session(tmp_path: Path) -> None:
    graph = build(config_of("llama-converted")).graph
    assert sorted(graph.states) == ["conv0", "conv2", "kv1", "linear0", "linear2"]


BAD = {
    "mode is 'cube', expected one of": {"mode": "cube"},
    "key 'sinks' is unknown": {"sinks": 3},
    "'window' is 3": {"window": 3},
    "a window with mode 'mamba2s'": {"mode": "mamba2s", "decay_bias": False, "window": True},
    "conv is 1, expected 0 or 2 to 16": {"conv": 1},
    "features is 8 without maps": {"features": 8},
    "chunk is 7, expected 16 to 256": {"chunk": 7},
    "decay_bias with mode 'mamba2s'": {"mode": "mamba2s", "decay_bias": True},
    "'chunk' is 'x'": {"chunk": "x"},
}


@pytest.mark.parametrize("says", BAD)
@pytest.mark.parametrize("kind", ["2mamba", "llama"])
def test_what_no_layer_is_like_is_refused(says: str, kind: str) -> None:
    config = SIZES | {"model_type": kind, "layer_types": MIXED, "linear_attention": BAD[says]}
    with pytest.raises(ConvertError, match=says):
        build(config)


@pytest.mark.parametrize("kinds", [None, "linear_attention", ["full_attention"] * 3, [3, 3, 3]])
def test_layers_must_be_named(kinds: Any) -> None:
    config = SIZES | {"model_type": "llama", "layer_types": kinds, "linear_attention": {}}
    with pytest.raises(ConvertError, match="some of them 'linear_attention'"):
        build(config)
