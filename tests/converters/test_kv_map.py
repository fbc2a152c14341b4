"""Layers that share keys and values (`kv_map`) against a decoder written out in torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from edgert.converters.convert import convert
from edgert.converters.families import build
from edgert.converters.linearize.options import LinearizeOptions
from edgert.converters.linearize.plan import hybrid_graph, turnable
from edgert.converters.torch_graph import TorchGraph
from edgert.kernels.states import BorrowedState, KVState
from torch import Tensor
from torch.nn.functional import linear, silu

from edgert.bundle import Bundle
from edgert.errors import ConvertError
from edgert.evaluation.verify import greedy
from edgert.forecast.memory import cache_bytes
from edgert.planning.cards import card_of
from edgert.session import Feed, Session, SessionOptions, open_session
from edgert.session.onnx_io import Variant
from edgert.session.pages import page_bytes

from ..closeness import assert_close
from ..onnx_model import ort_session
from .checkpoints import prompt
from .test_linear_families import SIZES, tensors_of, write_checkpoint

FOUR = SIZES | {"num_hidden_layers": 4, "rope_theta": 5000.0, "rms_norm_eps": 1e-5}
CASES: dict[str, dict[str, Any]] = {
    "cla-llama": {"model_type": "llama", "kv_map": [0, 0, 2, 2], "attention_bias": True},
    "cla-qwen3": {"model_type": "qwen3", "head_dim": 32, "kv_map": [0, 0, 0, 3]},
    "yoco-window": {
        "model_type": "ministral", "head_dim": 16, "sliding_window": 40, "kv_map": [0, 1, 2, 2],
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 2,
    },
    "yoco-2mamba": {
        "model_type": "2mamba", "head_dim": 16, "kv_map": [0, 1, 2, 2],
        "layer_types": ["linear_attention"] * 2 + ["full_attention"] * 2,
    },
}  # fmt: skip


def config_of(case: str) -> dict[str, Any]:
    return FOUR | CASES[case]


class Plain:
    """A Llama-like decoder in float64, whole sequences, every layer's cache in a list."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, Any]) -> None:
        self.c = config
        self.t = {name: torch.from_numpy(a).double() for name, a in tensors.items()}

    def __call__(self, ids: Any) -> Tensor:
        x, caches = self.t["model.embed_tokens.weight"][torch.as_tensor(ids)], list[Any]()
        for layer, owner in enumerate(self.c["kv_map"]):
            at = f"model.layers.{layer}."
            h = self.norm(x, f"{at}input_layernorm")
            kinds = self.c.get("layer_types", ["full_attention"] * 4)
            if kinds[layer] == "linear_attention":
                y = self.squared(h, f"{at}self_attn.")
                caches.append(None)
            else:
                window = self.c["sliding_window"] if "sliding" in kinds[layer] else 0
                q = self.turned(self.heads(h, f"{at}self_attn.", "q"))
                if owner == layer:
                    k = self.turned(self.heads(h, f"{at}self_attn.", "k"))
                    caches.append((k, self.heads(h, f"{at}self_attn.", "v")))
                else:
                    caches.append(caches[owner])
                y = self.attended(q, *caches[layer], window)
            x = x + self.product(y, f"{at}self_attn.o_proj")
            h = self.norm(x, f"{at}post_attention_layernorm")
            gate, up = (self.product(h, f"{at}mlp.{n}_proj") for n in ("gate", "up"))
            x = x + self.product(silu(gate) * up, f"{at}mlp.down_proj")
        return self.norm(x, "model.norm") @ self.t["model.embed_tokens.weight"].T

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.t[f"{name}.weight"]

    def product(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.t[f"{name}.weight"], self.t.get(f"{name}.bias"))

    def heads(self, h: Tensor, at: str, key: str) -> Tensor:
        rows = self.product(h, f"{at}{key}_proj")
        count = self.c["num_attention_heads" if key == "q" else "num_key_value_heads"]
        rows = rows.view(len(rows), count, -1)
        norm = f"{at}{key}_norm"
        return (self.norm(rows, norm) if f"{norm}.weight" in self.t else rows).transpose(0, 1)

    def turned(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        inverse = self.c["rope_theta"] ** (-torch.arange(half).double() / half)
        angle = torch.arange(x.shape[1]).double()[:, None] * inverse
        a, b = x[..., :half], x[..., half:]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def attended(self, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        share, count = len(q) // len(k), q.shape[1]
        k, v = k.repeat_interleave(share, 0), v.repeat_interleave(share, 0)
        age = torch.arange(count)[:, None] - torch.arange(count)
        hidden = (age < 0) | (age >= (window or count))
        scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)

    def squared(self, h: Tensor, at: str) -> Tensor:
        """2Mamba's squared weights with a convolution of width two and decays."""
        rows = torch.cat([self.product(h, f"{at}{n}_proj") for n in "qkv"], 1)
        before = torch.cat([torch.zeros(1, rows.shape[1]), rows[:-1]])
        taps = self.t[f"{at}conv.weight"][:, 0]
        rows = before * taps[:, 0] + rows * taps[:, 1] + self.t[f"{at}conv.bias"]
        heads, groups = self.c["num_attention_heads"], self.c["num_key_value_heads"]
        parts = rows.view(len(h), heads + 2 * groups, -1).transpose(0, 1)
        q, k, v = parts.split([heads, groups, groups])
        k, v = (x.repeat_interleave(heads // groups, 0) for x in (k, v))
        rate = -torch.nn.functional.softplus(h @ self.t[f"{at}decay_proj.weight"].T)
        c = rate.cumsum(0).T.repeat_interleave(heads // groups, 0)
        age = torch.tril(torch.ones(len(h), len(h))).bool()
        fade = (c[:, :, None] - c[:, None, :]).masked_fill(~age, -torch.inf).exp()
        w = (q @ k.transpose(1, 2)) ** 2 / q.shape[-1] * fade
        return (w @ v / (w.sum(-1, keepdim=True) + 1e-6)).transpose(0, 1).flatten(1)


class Converted(NamedTuple):
    case: str
    bundle: Bundle
    expected: Any


@pytest.fixture(scope="module", params=CASES)
def converted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Converted]:
    folder, config = tmp_path_factory.mktemp(request.param), config_of(request.param)
    tensors = tensors_of(config)
    assert not any("layers.3.self_attn.k_proj" in n for n in tensors) or config["kv_map"][3] == 3
    write_checkpoint(folder / "checkpoint", config, tensors)
    convert(folder / "checkpoint", folder / "out.edge", quant="f32", golden=False, progress=False)
    expected = Plain(config, tensors)(prompt(150)).numpy()
    with Bundle.open(folder / "out.edge") as bundle:
        yield Converted(request.param, bundle, expected)


def logits(session: Session, pieces: list[int]) -> Any:
    state, found, ids = session.new_state(), [], prompt(150)
    for count in pieces:
        now = ids[state.length : state.length + count]
        found.append(session.step([Feed(state, now, "all")])[0].logits)
        state.commit(count)
    state.close()
    return np.concatenate(found)


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_logits_are_those_of_a_plain_decoder(converted: Converted, device: str) -> None:
    with closing(open_session(converted.bundle, SessionOptions(device, threads=1))) as session:
        got = logits(session, [100, 50])
        assert_close(f"{converted.case} {device}", converted.expected, got, rms=1e-4)
        if device == "cpu":
            assert np.array_equal(logits(session, [1, 62, 1, 1, 3, 60, 22]), got)


def test_torch_runs_the_same_graph(converted: Converted) -> None:
    graph, weights = converted.bundle.graph(), converted.bundle.weights()
    ids = torch.from_numpy(np.asarray(prompt(150), np.int64))[None]
    made = TorchGraph(graph, weights)(ids)[0].detach().numpy()
    assert_close(f"{converted.case} torch", converted.expected, made, rms=1e-4)


def test_greedy_text_is_the_same_on_onnxruntime(converted: Converted, tmp_path: Path) -> None:
    with closing(open_session(converted.bundle, SessionOptions("cpu", threads=1))) as cpu:
        expected = greedy(cpu, prompt(60, 1).tolist(), 24)
    graph, weights = converted.bundle.graph(), converted.bundle.weights()
    for standard in (False, True):
        folder = tmp_path / str(standard)
        folder.mkdir()
        with closing(ort_session(graph, weights, folder, Variant(standard=standard))) as ort:
            assert greedy(ort, prompt(60, 1).tolist(), 24) == expected


def test_memory_holds_the_owners_alone(converted: Converted) -> None:
    graph, kv_map = converted.bundle.graph(), CASES[converted.case]["kv_map"]
    owners = [f"kv{n}" for n in sorted(set(kv_map)) if f"kv{n}" in graph.states]
    with closing(open_session(converted.bundle, SessionOptions("cpu", threads=1))) as session:
        assert sorted(session.pool.keys) == owners  # type: ignore[attr-defined]
    held = {n: s for n, s in graph.states.items() if not isinstance(s, BorrowedState)}
    assert cache_bytes(graph, 500, 32) == cache_bytes(graph.replace(states=held), 500, 32)
    pages = [sum(page_bytes(s, 32)) for s in held.values() if isinstance(s, KVState)]
    assert len(pages) == len(owners) < len(kv_map)
    if "2mamba" not in converted.case:  # of which there are no cards
        card = card_of(graph, "m", tokens=1e9)
        assert (card.layers, card.kv_layers) == (4, len(owners))


def test_rejected_drafts_leave_no_trace(converted: Converted) -> None:
    ids = prompt(150)
    with closing(open_session(converted.bundle, SessionOptions("cpu", threads=1))) as session:
        state, wrong = session.new_state(), (ids[100:104] + 1) % 250
        session.step([Feed(state, ids[:100])])
        state.commit(100)
        session.step([Feed(state, wrong, "all")])
        state.discard()
        session.step([Feed(state, np.concatenate([ids[100:101], wrong[1:]]), "all")])
        state.commit(1)
        copy = state.fork()
        found = [session.step([Feed(s, ids[101:], "all")])[0].logits for s in (state, copy)]
        assert np.array_equal(found[0], found[1])
        assert np.array_equal(found[0], logits(session, [100, 50])[101:])


FORWARD, CHAIN = "owner of layer 1 is 2, expected 0 to 1", "is 1, which reads layer 0"
BAD: dict[str, Any] = {
    "owner of each of 4 layers": [0, 0, 2],
    "expected the owner of each": [0, True, 2, 2],
    FORWARD: [0, 2, 2, 2],
    "owner of layer 3 is 9, expected 0 to 3": [0, 1, 2, 9],
    "owner of layer 3 is -1, expected 0 to 3": [0, 1, 2, -1],
    CHAIN: [0, 0, 1, 3],
    "'kv_map' is 'x'": "x",
}


@pytest.mark.parametrize("says", BAD)
def test_maps_that_lead_nowhere_are_refused(says: str) -> None:
    with pytest.raises(ConvertError, match=says):
        build(FOUR | {"model_type": "llama", "kv_map": BAD[says]})


def test_owners_have_what_their_readers_need() -> None:
    linear = ["linear_attention", "full_attention", "full_attention", "full_attention"]
    with pytest.raises(ConvertError, match="layer 0 has no keys and values of its own"):
        build(FOUR | {"model_type": "2mamba", "layer_types": linear, "kv_map": [0, 0, 2, 3]})
    slides = config_of("yoco-window") | {"kv_map": [0, 1, 1, 3]}
    with pytest.raises(ConvertError, match="a window of 0, expected at most the owner's 40"):
        build(slides)


def test_every_family_of_attention_takes_a_map() -> None:
    for kind, more in {"olmo2": {}, "phi3": {}, "qwen2": {}, "gemma2": {"head_dim": 16}}.items():
        config = FOUR | {"model_type": kind, "kv_map": [0, 0, 2, 2]} | more
        config = {k: v for k, v in config.items() if k != "hidden_act" or kind != "gemma2"}
        windows = {"sliding_window": None} if kind in ("phi3",) else {}
        graph = build(config | windows | ({"kv_map": [0, 1, 0, 1]} if more else {})).graph
        shared = [node for node in graph.nodes if node.op == "shared_attention"]
        assert len(shared) == 2, kind
        assert not any(".k_norm" in name for node in shared for name in node.weights.values())


def test_layers_that_share_are_not_turned() -> None:
    graph = build(config_of("cla-llama")).graph
    own = build(config_of("cla-qwen3")).graph
    options = LinearizeOptions()
    assert [turn.layer for turn in turnable(own, options)] == [3]
    made = hybrid_graph(own, [3], options)
    assert "linear3" in made.states
    assert isinstance(made.states["kv1"], BorrowedState)
    with pytest.raises(ConvertError, match="no layer can be linearized"):
        turnable(graph, options)
