"""LoRA adapters from strangers: each is refused in one error, before memory is taken."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert import limits
from edgert.bundle import Bundle
from edgert.bundle.amend import list_files
from edgert.bundle.origins import read_origins
from edgert.bundle.peft import Adapter
from edgert.errors import BundleError
from tests.adapters import CONFIG, write_adapter
from tests.tiny import tiny_bundle

Q = "model.layers.0.self_attn.q_proj"
A, B = np.ones((4, 8), np.float32), np.ones((6, 4), np.float32)
GOOD = {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B}
LENGTHS = {f"{Q}.lora_magnitude_vector": np.ones(6, np.float32)}

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "ia3": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "no kind": ({"peft_type": None}, "peft_type is 'None'"),
    "rank of another": ({"r": 8}, "expected .* of rank 8"),
    "rank a text": ({"r": "4"}, "Expected `int`"),
    "rank 0": ({"r": 0}, "rank 0"),
    "huge alpha": ({"lora_alpha": 1e300}, "alpha 1e\\+300"),
    "pissa": ({"init_lora_weights": "pissa_niter_16"}, "changed the model's own"),
    "olora": ({"init_lora_weights": "olora"}, "changed the model's own"),
    "loftq": ({"init_lora_weights": "loftq"}, "changed the model's own"),
    "replication": ({"layer_replication": [[0, 4], [2, 5]]}, "'layer_replication' is"),
    "activated": ({"alora_invocation_tokens": [1, 2]}, "'alora_invocation_tokens' is"),
    "parameters": ({"target_parameters": ["experts"]}, "'target_parameters' is"),
    "biased": ({"lora_bias": True}, "'lora_bias' is True"),
    "unknown": ({"lora_turbo": 3}, "'lora_turbo' is 3"),
    "dora without lengths": ({"use_dora": True}, "0 modules have lengths"),
    "slow pattern": ({"rank_pattern": {"(a+)+$": 4}}, "is no plain name"),
    "pattern of texts": ({"alpha_pattern": {"q_proj": "8"}}, "Expected `float`"),
}
TENSORS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "nothing": ({}, "no tensors"),
    "A alone": ({f"{Q}.lora_A.weight": A}, "lora_A alone"),
    "ranks differ": (GOOD | {f"{Q}.lora_B.weight": np.ones((6, 3), np.float32)}, "expected"),
    "a vector": (GOOD | {f"{Q}.lora_A.weight": np.ones(8, np.float32)}, "expected"),
    "empty": (GOOD | {f"{Q}.lora_B.weight": np.ones((0, 4), np.float32)}, "alpha 8"),
    "nan": (GOOD | {f"{Q}.lora_A.weight": A * np.nan}, "NaN or infinities"),
    "infinite": (GOOD | {f"{Q}.lora_B.weight": B * np.inf}, "NaN or infinities"),
    "huge": (
        GOOD
        | {f"{Q}.lora_A.weight": A * np.float32(1e30), f"{Q}.lora_B.weight": B * np.float32(1e30)},
        rf"{Q}\.lora_A\.weight' and .* make changes of up to 8e\+60",
    ),
    "huge by alpha": (
        GOOD
        | {f"{Q}.lora_A.weight": A * np.float32(1e-30), f"{Q}.lora_B.weight": B * np.float32(3e38)},
        r"of up to 6e\+38",
    ),
    "integers": (GOOD | {f"{Q}.lora_A.weight": np.ones((4, 8), np.int8)}, "is I8"),
    "a bias of B": (GOOD | {f"{Q}.lora_B.bias": np.ones(6, np.float32)}, "none of LoRA's"),
    "a path": (GOOD | {"../../x": A}, "none of LoRA's"),
    "lengths unasked": (GOOD | LENGTHS, "use_dora is False"),
    "lengths alone": (LENGTHS, "no factors"),
}


@pytest.mark.parametrize("row", sorted(CONFIGS))
def test_configs(row: str, tmp_path: Path) -> None:
    changes, words = CONFIGS[row]
    write_adapter(tmp_path, GOOD, **changes)
    with pytest.raises(BundleError, match=words) as caught:
        Adapter(tmp_path)
    assert caught.value.code == "adapter"
    assert caught.value.hint


@pytest.mark.parametrize("row", sorted(TENSORS))
def test_tensors(row: str, tmp_path: Path) -> None:
    tensors, words = TENSORS[row]
    write_adapter(tmp_path, tensors)
    with pytest.raises(BundleError, match=words) as caught:
        Adapter(tmp_path)
    values = row in ("nan", "infinite", "huge", "huge by alpha")
    assert ("take another one" in caught.value.hint) == values


def test_what_is_good_opens(tmp_path: Path) -> None:
    write_adapter(tmp_path, GOOD | LENGTHS, use_dora=True, rank_pattern={r"self_attn\.q_proj": 4})
    adapter = Adapter(tmp_path)
    assert adapter.products[Q].shape == (6, 8)
    assert adapter.products[Q].scale == 2.0
    adapter.close()


def _pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _cut(folder: Path) -> None:
    os.truncate(folder / "adapter_model.safetensors", 300)


def _long_header(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")


def _large_config(folder: Path) -> None:
    text = json.dumps(CONFIG | {"revision": "x" * limits.CONFIG_BYTES})
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")


def _deep_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[" * 100_000, encoding="utf-8")


def _twice(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"r": 4, "r": 5}', encoding="utf-8")


def _list(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[4]", encoding="utf-8")


def _none(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def _fifo(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "spoil", [_pickle, _cut, _long_header, _large_config, _deep_config, _twice, _list, _none, _fifo]
)
def test_files(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    write_adapter(tmp_path, GOOD)
    spoil(tmp_path)
    with pytest.raises(BundleError) as caught:
        Adapter(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint


PART = {"tensor": "model.layers.0.self_attn.o_proj.weight", "shape": [64, 64], "rows": [0, 64]}
ORIGINS: dict[str, Any] = {
    "unknown weight": {"weights": {"l9.o": [PART]}},
    "too few rows": {"weights": {"l0.o": [PART | {"rows": [0, 32]}]}},
    "rows outside": {"weights": {"l0.o": [PART | {"rows": [32, 96]}]}},
    "rows backwards": {"weights": {"l0.o": [PART | {"rows": [64, 0]}]}},
    "one number": {"weights": {"l0.o": [PART | {"rows": [64]}]}},
    "a cube": {"weights": {"l0.o": [PART | {"shape": [64, 64, 1]}]}},
    "negative": {"weights": {"l0.o": [PART | {"shape": [-64, 64]}]}},
    "huge": {"weights": {"l0.o": [PART | {"shape": [1 << 62, 64], "rows": [0, 64]}]}},
    "another width": {"weights": {"l0.o": [PART | {"shape": [64, 32]}]}},
    "heads of 0": {"weights": {"l0.o": [PART | {"pairs": [0, 0]}]}},
    "odd pairs": {"weights": {"l0.o": [PART | {"pairs": [16, 3]}]}},
    "heads that do not fit": {"weights": {"l0.o": [PART | {"pairs": [24, 8]}]}},
    "infinite scale": {"weights": {"l0.o": [PART | {"scale": 1e300}]}},
    "no parts": {"weights": {"l0.o": []}},
    "unknown field": {"weights": {"l0.o": [PART | {"turbo": 1}]}},
    "a list": [],
}


@pytest.mark.parametrize("row", sorted(ORIGINS))
def test_origins(row: str, tmp_path: Path) -> None:
    """What a bundle says of the tensors that its matrices are made of."""
    path = tiny_bundle(tmp_path / "tiny.edge")
    with Bundle.open(path) as bundle:
        assert bundle.graph().weights["l0.o"].shape == (64, 64)
        for content, good in ((ORIGINS[row], False), ({"weights": {"l0.o": [PART]}}, True)):
            (path / "model.tensors.json").write_text(json.dumps(content), encoding="utf-8")
            list_files(bundle, [path / "model.tensors.json"])
            with Bundle.open(path) as spoiled:
                if good:
                    assert read_origins(spoiled)["l0.o"][0].tensor == PART["tensor"]
                    continue
                with pytest.raises(BundleError) as caught:
                    read_origins(spoiled)
            assert caught.value.code == "adapter-origins"
