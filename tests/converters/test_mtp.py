"""The layer that a checkpoint brings for guesses: it computes what the published models compute,
it changes no text, and one that does not fit is left out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.converters.families import draft_of, mtp, plan
from edgert.converters.sources.drafting import special_ids
from edgert.kernels.encodings import dequantize

import edgert
from edgert import notices
from edgert.bundle import Bundle
from edgert.session.base import Feed
from edgert.text.model import TextModel
from edgert.text.speculative.options import DraftOptions
from tests.closeness import assert_close
from tests.converters.checkpoints import VOCAB, prompt, write_checkpoint
from tests.converters.published import CONFIGS
from tests.converters.test_layouts import Arrays, change
from tests.text.speculative.models import NO_END

CASES = ("qwen3_next", "qwen3_next-experts", "qwen3_5", "qwen3_5-tied", "qwen3_5_moe")
RMS = 2e-5
FIXED = DraftOptions("head", max_tokens=5, adapt=False)
SAMPLERS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "t1": {"temperature": 1.0, "seed": 12},
    "all": {"temperature": 0.8, "seed": 3, "top_k": 60, "top_p": 0.95, "repeat_penalty": 1.1},
}


def layer_of(model: Any) -> Any:
    """The layer of gated attention, the vectors and the matrix that a model of transformers could
    be published with, all random."""
    import torch

    config, known = model.config, model.model.layers
    at = list(config.layer_types).index("full_attention")
    torch.manual_seed(5)
    layer = type(known[at])(config, at).float().eval()
    width = config.hidden_size

    def drawn(*shape: int, scale: float) -> Any:
        return scale * torch.randn(shape)

    with torch.no_grad():
        for weight in layer.parameters():
            scale = 0.3 if weight.dim() == 1 else 1.4 / weight.shape[-1] ** 0.5
            weight.copy_(drawn(*weight.shape, scale=scale))
    return SimpleNamespace(
        layer=layer, fc=drawn(width, 2 * width, scale=width**-0.5),
        norm_e=drawn(width, scale=0.3), norm_h=drawn(width, scale=0.3),
        norm=drawn(width, scale=0.3),
    )  # fmt: skip


def tensors_of(own: Any, *, apart: bool) -> Arrays:
    """As a checkpoint stores them; apart: experts one by one."""
    found = {f"layers.0.{name}": tensor for name, tensor in own.layer.state_dict().items()}
    if apart:
        for stack, keys in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
            for number, pair in enumerate(found.pop(f"layers.0.mlp.experts.{stack}", ())):
                for key, rows in zip(keys, pair.chunk(len(keys)), strict=True):
                    found[f"layers.0.mlp.experts.{number}.{key}_proj.weight"] = rows
    found |= {
        "fc.weight": own.fc, "norm.weight": own.norm,
        "pre_fc_norm_embedding.weight": own.norm_e, "pre_fc_norm_hidden.weight": own.norm_h,
    }  # fmt: skip
    return {f"mtp.{name}": np.ascontiguousarray(t.numpy()) for name, t in found.items()}


def checkpoint(case: str, folder: Path) -> tuple[Any, Any]:
    """A checkpoint with such a layer; the model, and the layer."""
    model = write_checkpoint(case, folder)
    own = layer_of(model)
    added = tensors_of(own, apart=case.startswith("qwen3_next"))
    change(folder, lambda tensors: {**tensors, **added})
    return model, own


def converted(folder: Path, quant: str) -> Path:
    out = folder.with_name(f"{folder.name}-{quant}.edge")
    convert(folder, out, quant=quant, method="rtn", golden=False, progress=False)
    return out


def published(model: Any, own: Any, embedded: Any, hidden: Any) -> tuple[Any, Any]:
    """Rows [T, C] behind the layer, and logits, of rows e(x[t + 1]) and h(t): the equations of
    vLLM's Qwen3NextMultiTokenPredictor around the model's own kind of layer."""
    import torch

    def norm(x: Any, weight: Any) -> Any:
        return (
            x
            * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + model.config.rms_norm_eps)
            * (1 + weight)
        )

    count = len(embedded)
    u = torch.cat([norm(embedded, own.norm_e), norm(hidden, own.norm_h)], -1) @ own.fc.T
    at = torch.arange(count)[None]
    axes = at if "next" in model.config.model_type else at.expand(3, 1, count)
    mask = torch.full((count, count), -torch.inf).triu(1)[None, None]
    turned = model.model.rotary_emb(u[None], axes)
    y = own.layer(u[None], position_embeddings=turned, attention_mask=mask, position_ids=at)
    y = norm((y[0] if isinstance(y, tuple) else y)[0], own.norm)
    return y, model.lm_head(y)


@pytest.mark.parametrize("case", CASES)
def test_guesses_are_those_of_the_published_equations(tmp_path: Path, case: str) -> None:
    model, own = checkpoint(case, tmp_path / case)
    assert_guesses(converted(tmp_path / case, "f32"), model, own)


def assert_guesses(bundle: Path, model: Any, own: Any) -> None:
    """A bundle's layer gives the rows and the logits of the published equations."""
    import torch

    ids = prompt(24)
    tokens = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        h = model.model(tokens[None], use_cache=False).last_hidden_state[0]
        embedded = model.model.embed_tokens(tokens)
        behind, logits = published(model, own, embedded[1:], h[:-1])
    with edgert.load(bundle, threads=1) as loaded:
        head, session = loaded.drafting.head(), loaded.session
        state = session.new_state()
        (text,) = session.step([Feed(state, ids, "none", taps=head.taps)])
        state.close()
        (features,) = text.taps.values()
        zeros = np.zeros((23, head.width), np.float32)
        state = head.session.new_state()
        (got,) = head.session.step([head.feed(state, features[:-1], zeros, ids[1:].tolist())])
        assert_close("rows", behind.numpy(), got.taps["next"], rms=RMS)
        assert_close("logits", logits[-1:].numpy(), got.logits, rms=RMS)
        state.commit(23)
        hidden = h[:-1]
        for _ in range(3):  # further guesses go on from the layer's own rows
            guess = int(logits[-1].argmax())
            hidden = torch.cat([hidden, behind[-1:]])
            tokens = torch.cat([tokens, torch.tensor([guess])])
            with torch.no_grad():
                rows = model.model.embed_tokens(tokens[1:])
                behind, logits = published(model, own, rows, hidden)
            feed = head.feed(state, 0 * features[:1], got.taps["next"][-1:], [guess])
            (got,) = head.session.step([feed])
            state.commit(1)
            assert_close("further", logits[-1:].numpy(), got.logits, rms=RMS)
        state.close()


@pytest.fixture(scope="module", params=("qwen3_next", "qwen3_5_moe"))
def bundle(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("mtp") / request.param
    checkpoint(request.param, folder)
    return converted(folder, "int4")


@pytest.fixture(scope="module")
def loaded(bundle: Path) -> Iterator[TextModel]:
    with edgert.load(bundle, threads=1, draft="none") as model:
        yield model


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_random_layer_changes_no_text(loaded: TextModel, sampler: str) -> None:
    options = {"max_tokens": 60, **NO_END, **SAMPLERS[sampler]}
    plain = loaded.generate("One two three", draft="none", **options).token_ids
    for draft in (FIXED, DraftOptions("head"), ("ngram", "head")):
        assert loaded.generate("One two three", draft=draft, **options).token_ids == plain
    drafting = loaded.generate("One two three", draft=FIXED, **options).drafting
    assert drafting is not None
    assert drafting.proposed > 60


def test_several_lanes_and_what_is_drafted_by_default(bundle: Path, loaded: TextModel) -> None:
    asked: list[dict[str, Any]] = [
        {"prompt": "abc " * (i + 1), "max_tokens": 20 + i, "seed": i, "temperature": 0.7 * i,
         **NO_END}
        for i in range(3)
    ]  # fmt: skip
    plain = [loaded.generate(draft="none", **ask).token_ids for ask in asked]
    for draft in (FIXED, "auto"):
        with ThreadPoolExecutor(len(asked)) as pool:
            jobs = [pool.submit(loaded.generate, draft=draft, **ask) for ask in asked]
            assert [job.result(120).token_ids for job in jobs] == plain
    with Bundle.open(bundle) as opened:
        weights = opened.graph("draft").weights.values()
    stored = {weight.encoding for weight in weights if len(weight.shape) > 1}
    assert stored <= {"int8-g32", "f16"}, "as embeddings are, and routers"


def test_a_large_vocabulary_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtp, "GUESSED", 90)
    folder = tmp_path / "m"
    model, _ = checkpoint("qwen3_5", folder)
    out = converted(folder, "f32")
    with Bundle.open(out) as opened, edgert.load(out, threads=1, draft="none") as loaded:
        assert loaded.drafting.head().ids.tolist() == list(range(90))
        rows = np.asarray(dequantize(opened.weights("draft")["head"]))
        assert np.array_equal(rows, model.lm_head.weight.detach().numpy()[:90])
        options = {"max_tokens": 40, "temperature": 1.0, "seed": 2, **NO_END}
        plain = loaded.generate("abc", draft="none", **options).token_ids
        got = loaded.generate("abc", draft=FIXED, **options)
        assert got.token_ids == plain
        assert got.drafting is not None
        assert got.drafting.proposed > 40


def test_the_layer_of_a_model_with_pictures(tmp_path: Path) -> None:
    """Its text's tensors lie under another prefix, those of the layer do not."""
    folder = tmp_path / "m"
    checkpoint("qwen3_5", folder)
    text = json.loads((folder / "config.json").read_text("utf-8"))
    whole = {
        "model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"],
        "text_config": text, "vision_config": {},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(whole), "utf-8")
    change(
        folder,
        lambda tensors: {
            name.replace("model.", "model.language_model.", 1): t for name, t in tensors.items()
        },
    )
    with Bundle.open(converted(folder, "f32")) as opened:
        assert opened.manifest.draft is not None
        assert opened.graph("draft").outputs[0].shape == ("R", VOCAB)


def test_special_tokens_stay_in_a_cut_vocabulary() -> None:
    tokenizer = {"added_tokens": [{"id": 151_645, "content": "<|im_end|>"}, {"id": "x"}, 3]}
    special = special_ids(tokenizer, {"eos_token_id": [151_643, 151_645]}, {"eos_token_id": None})
    assert special == [151_645, 151_643, 151_645]
    assert mtp.guessed(151_936, [*special, -1, 151_936]) == [*range(32_768), 151_643, 151_645]
    assert mtp.guessed(300, [5]) == list(range(300))
    assert special_ids({"added_tokens": 3}, {}) == []


def test_a_published_config_gives_the_published_tensors() -> None:
    """Names and shapes of the layer of Qwen3.5-27B as the hub has them."""
    faults: list[str] = []
    model = plan(CONFIGS["Qwen3.5-27B"], faults)
    assert not faults
    found = draft_of(CONFIGS["Qwen3.5-27B"], model, [])
    assert found is not None
    layer, ids = found
    shapes = {
        p.name: p.shape
        for recipe in layer.tensors.values()
        for p in recipe.parts
        if p.name.startswith("mtp.")
    }
    at, attention = "mtp.layers.0", "mtp.layers.0.self_attn"
    assert shapes == {
        "mtp.fc.weight": (5120, 10_240), "mtp.norm.weight": (5120,),
        "mtp.pre_fc_norm_embedding.weight": (5120,), "mtp.pre_fc_norm_hidden.weight": (5120,),
        f"{at}.input_layernorm.weight": (5120,), f"{at}.post_attention_layernorm.weight": (5120,),
        f"{at}.mlp.gate_proj.weight": (17_408, 5120), f"{at}.mlp.up_proj.weight": (17_408, 5120),
        f"{at}.mlp.down_proj.weight": (5120, 17_408), f"{attention}.q_norm.weight": (256,),
        f"{attention}.k_norm.weight": (256,), f"{attention}.q_proj.weight": (12_288, 5120),
        f"{attention}.k_proj.weight": (1024, 5120), f"{attention}.v_proj.weight": (1024, 5120),
        f"{attention}.o_proj.weight": (5120, 6144),
    }  # fmt: skip
    assert layer.graph.outputs[0].shape == ("R", len(ids))
    layer.graph.shapes()


def _without(name: str) -> Callable[[Arrays], Arrays]:
    return lambda tensors: {n: t for n, t in tensors.items() if n != name}


def _with(name: str, *shape: int, kind: str = "f4") -> Callable[[Arrays], Arrays]:
    return lambda tensors: {**tensors, name: np.ones(shape, kind)}


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (_without("mtp.norm.weight"), "tensor 'mtp.norm.weight' [64] is missing"),
        (_with("mtp.fc.weight", 64, 64), "tensor 'mtp.fc.weight' is [64, 64], expected [64, 128]"),
        (_with("mtp.fc.weight", 64, 128, kind="i1"), "tensor 'mtp.fc.weight' is I8, expected one"),
        (_with("mtp.layers.1.input_layernorm.weight", 64), "is unexpected"),
        (_with("mtp.embed_tokens.weight", VOCAB, 64), "is unexpected"),
    ],
)
def test_a_layer_that_does_not_fit_is_left_out(
    tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch, edit: Any, why: str
) -> None:
    monkeypatch.setattr(notices, "_shown", set())
    folder = tmp_path / "m"
    checkpoint("qwen3_next", folder)
    change(folder, edit)
    with caplog.at_level(logging.WARNING, "edgert"):
        out = converted(folder, "int8")
    with Bundle.open(out) as opened:
        assert opened.manifest.draft is None
        assert list(opened.manifest.parts) == ["model"]
    (said,) = [line for line in caplog.messages if "predict further tokens are left out" in line]
    assert why in said
