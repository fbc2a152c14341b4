"""LoRA adapters merged at conversion: W + scale * B A, against transformers with such weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert

from edgert.bundle import Bundle
from edgert.errors import ConvertError
from edgert.session import SessionOptions, open_session
from edgert.session.base import Feed
from tests.adapters import add_products, factors, shapes_of, write_adapter
from tests.closeness import assert_close
from tests.converters.checkpoints import expected_logits, prompt, write_checkpoint

RMS = 1e-4
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tied llama: its folder and the model in transformers."""
    folder = tmp_path_factory.mktemp("base")
    return folder / "checkpoint", write_checkpoint("llama", folder / "checkpoint")


@pytest.fixture
def restored(base: Any) -> Iterator[Any]:
    """The model of `base`, whose weights come back afterwards."""
    _, model = base
    before = {name: value.clone() for name, value in model.state_dict().items()}
    yield model
    model.load_state_dict(before)


def logits(checkpoint: Path, out: Path, adapters: list[Path], ids: np.ndarray) -> np.ndarray:
    convert(
        checkpoint, out, quant="f32", golden=False, progress=False, adapters=adapters, force=True
    )
    with Bundle.open(out) as bundle:
        session = open_session(bundle, SessionOptions("reference"))
        found = session.step([Feed(session.new_state(), ids, "all")])[0].logits
        session.close()
    return found


def check(model: Any, checkpoint: Path, out: Path, adapters: list[Path]) -> None:
    ids = prompt(63)
    plain = logits(checkpoint, out, [], ids)
    got = logits(checkpoint, out, adapters, ids)
    assert np.sqrt(np.mean((got - plain) ** 2)) > 0.05 * np.std(plain), "it changed nothing"
    assert_close("merged", expected_logits(model, ids), got, rms=RMS)


@pytest.mark.parametrize("case", ["plain", "rslora", "patterns", "dora", "two"])
def test_merged_logits_are_those_of_merged_weights(
    case: str, base: Any, restored: Any, tmp_path: Path
) -> None:
    checkpoint, model = base[0], restored
    shapes = shapes_of(model, ALL)
    arrays, scale, config = factors(shapes), 2.0, dict[str, Any]()
    if case == "rslora":
        scale, config = 8 / 2.0, {"use_rslora": True}
    if case == "dora":
        rng = np.random.default_rng(5)
        for name, (n, _) in shapes.items():
            lengths = rng.uniform(0.5, 1.5, n).astype(np.float32)
            arrays[f"{name}.lora_magnitude_vector"] = lengths
        config = {"use_dora": True}
    adapters = []
    if case == "patterns":  # other ranks and alphas for some modules
        down = {k: v for k, v in shapes.items() if k.endswith("down_proj")}
        first = {"model.layers.0.mlp.down_proj": down["model.layers.0.mlp.down_proj"]}
        special = factors(down, rank=2, seed=7)
        arrays |= special
        for name in list(special):
            if ".layers.0." in name:
                del special[name]
        add_products(model, special, 8 / 2)
        add_products(model, {k: v for k, v in arrays.items() if next(iter(first)) in k}, 3 / 2)
        others = {k: v for k, v in arrays.items() if "down_proj" not in k}
        add_products(model, others, 2.0)
        config = {
            "rank_pattern": {"down_proj": 2},
            "alpha_pattern": {"^model.layers.0.mlp.down_proj": 3},
        }
    else:
        add_products(model, arrays, scale)
    adapters.append(write_adapter(tmp_path / "one", arrays, **config))
    if case == "two":
        more = factors(shapes_of(model, ("q_proj",)), rank=3, seed=9)
        add_products(model, more, 6 / 3)
        adapters.append(write_adapter(tmp_path / "other", more, r=3, lora_alpha=6))
    check(model, checkpoint, tmp_path / "out.edge", adapters)


@pytest.mark.parametrize("case", ["phi3", "glm4", "granite", "qwen2"])
def test_fused_reordered_scaled_and_biased_weights(case: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    model = write_checkpoint(case, checkpoint)
    shapes = shapes_of(model, (*ALL, *FUSED))
    arrays = factors(shapes)
    extra = {}
    if case == "qwen2":  # biases that were trained as well
        for name, value in model.state_dict().items():
            if name.endswith("q_proj.bias"):
                value += 0.25
                extra[name] = value.numpy().copy()
    add_products(model, arrays, 2.0)
    adapter = write_adapter(tmp_path / "a", arrays | extra, bias="lora_only" if extra else "none")
    check(model, checkpoint, tmp_path / "out.edge", [adapter])


@pytest.mark.parametrize("case", ["embedding", "head", "head-saved"])
def test_a_tied_table_that_changes_in_one_use_is_stored_twice(
    case: str, base: Any, restored: Any, tmp_path: Path
) -> None:
    """As PEFT computes it: the adapter is at one of the two modules."""
    import torch

    checkpoint, model = base[0], restored
    rng = np.random.default_rng(3)
    vocab, width = model.lm_head.weight.shape
    a = rng.normal(size=(4, vocab if case == "embedding" else width)).astype(np.float32) * 0.1
    b = rng.normal(size=(width if case == "embedding" else vocab, 4)).astype(np.float32) * 0.3
    change = torch.from_numpy(2.0 * (b @ a))
    if case == "embedding":
        arrays = {
            "model.embed_tokens.lora_embedding_A": a,
            "model.embed_tokens.lora_embedding_B": b,
        }
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.model.embed_tokens.weight.data += change.T
    else:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + change)
        arrays = {"lm_head.lora_A.weight": a, "lm_head.lora_B.weight": b}
    config: dict[str, Any] = {}
    if case == "head-saved":
        arrays = {"lm_head.weight": model.lm_head.weight.detach().numpy()}
        config["modules_to_save"] = ["lm_head"]
    try:
        check(
            model,
            checkpoint,
            tmp_path / "out.edge",
            [write_adapter(tmp_path / "a", arrays, **config)],
        )
    finally:
        model.tie_weights()


def test_conversion_tells_the_adapter(base: Any, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "mine", factors(shapes_of(base[1], ("v_proj",))))
    convert(base[0], tmp_path / "out.edge", golden=False, progress=False, adapters=[adapter])
    with Bundle.open(tmp_path / "out.edge") as bundle:
        told = bundle.manifest.provenance
    assert told is not None
    assert "--adapter mine" in told.command
    assert len(told.sources["1:mine"]) == 64


def test_an_adapter_of_another_model_is_refused(base: Any, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", factors({"model.layers.7.self_attn.q_proj": (64, 64)}))
    with pytest.raises(
        ConvertError, match=r"layers\.7\.self_attn\.q_proj.*the checkpoint has none"
    ):
        convert(base[0], tmp_path / "x.edge", progress=False, adapters=[adapter])
    adapter = write_adapter(tmp_path / "b", factors({"model.layers.0.self_attn.q_proj": (64, 32)}))
    with pytest.raises(ConvertError, match=r"\[64, 32\], the checkpoint's is \(64, 64\)"):
        convert(base[0], tmp_path / "x.edge", progress=False, adapters=[adapter])
    assert not (tmp_path / "x.edge").exists()


DIVERGED = {  # what is changed of a sound adapter, and what the error says
    "module": (("lora_A", "lora_B"), 1e4, False, "module 'model.layers.0.self_attn.q_proj'"),
    "lengths": (("magnitude",), 1e30, True, "module 'model.layers.0.self_attn.q_proj'"),
    "sum beside lengths": (("lora_A",), 1e25, True, "weights of up to nan"),
    "whole tensor": (("norm",), 1e30, False, "tensor 'base_model.model.model.norm.weight'"),
}


@pytest.mark.parametrize(
    ("case", "quant"), [*((case, "f32") for case in sorted(DIVERGED)), ("module", "int4")]
)
def test_an_adapter_that_diverged_is_named(
    case: str, quant: str, base: Any, tmp_path: Path
) -> None:
    """Not the checkpoint, whose own values are sound, and whatever stores them."""
    shapes = {"model.layers.0.self_attn.q_proj": (64, 64)}
    names, by, dora, words = DIVERGED[case]
    arrays = factors(shapes)
    if dora:
        arrays["model.layers.0.self_attn.q_proj.lora_magnitude_vector"] = np.ones(64, np.float32)
    if case == "whole tensor":
        arrays["model.norm.weight"] = np.ones(64, np.float32)
    changed = {n: a * np.float32(by) if any(x in n for x in names) else a
               for n, a in arrays.items()}  # fmt: skip
    adapter = write_adapter(tmp_path / "diverged", changed, use_dora=dora)
    with pytest.raises(ConvertError) as caught:
        convert(base[0], tmp_path / "x.edge", quant=quant, progress=False, adapters=[adapter])
    assert f"adapter {adapter}: " in caught.value.message
    assert words in caught.value.message
    assert "take another one" in caught.value.hint


def test_adapters_need_a_checkpoint(base: Any, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ConvertError, match="expected a Hugging Face checkpoint"):
        convert(tmp_path / "m.gguf", tmp_path / "x.edge", progress=False, adapters=[tmp_path])
    assert json.loads((base[0] / "config.json").read_text())["tie_word_embeddings"]
