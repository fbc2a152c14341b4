"""Checkpoint directories as the hub serves them: shards, types, leftovers, links of its cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert

from edgert.bundle import Bundle
from edgert.session import SessionOptions, open_session
from edgert.storage.safetensors import TensorFile
from edgert.storage.safetensors_writer import TensorWriter
from tests.closeness import assert_close
from tests.conftest import ROOT
from tests.converters.checkpoints import expected_logits, make_model, prompt, write_tokenizer
from tests.converters.test_families import RMS, run

INDEX = "model.safetensors.index.json"


def write(case: str, folder: Path, dtype: str) -> Any:
    """A sharded checkpoint in a stored type; returns what transformers reads from it."""
    import torch
    from transformers import AutoModelForCausalLM

    model = make_model(case).to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    write_tokenizer(folder)
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def logits(out: Path) -> np.ndarray:
    with Bundle.open(out) as bundle:
        session = open_session(bundle, SessionOptions(device="cpu", threads=1))
        found = run(session, prompt(63))
        session.close()
    return found


def add_shard(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """One more shard of float32 tensors."""
    name, index = "model-extra.safetensors", json.loads((folder / INDEX).read_text("utf-8"))
    specs = {key: ("F32", value.shape) for key, value in tensors.items()}
    with TensorWriter(folder / name, specs) as writer:
        for key, value in tensors.items():
            writer.write(key, value)
    index["weight_map"] |= dict.fromkeys(tensors, name)
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("case", ["llama-bias", "phi3", "gemma3"])
def test_shards_of_every_type(case: str, dtype: str, tmp_path: Path) -> None:
    model = write(case, tmp_path / "checkpoint", dtype)
    convert(tmp_path / "checkpoint", tmp_path / "m.edge", quant="f32", golden=False, progress=False)
    label = f"{case}, {dtype} shards"
    assert_close(label, expected_logits(model, prompt(63)), logits(tmp_path / "m.edge"), rms=RMS)


def test_what_old_and_careless_writers_leave_behind(tmp_path: Path) -> None:
    """Rotary buffers, a tied head stored again (in another type), another format beside it."""
    folder = tmp_path / "checkpoint"
    model = write("llama", folder, "bfloat16")
    table = model.model.embed_tokens.weight.detach().numpy()
    buffers = {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32) for i in range(3)
    }
    add_shard(folder, {**buffers, "lm_head.weight": table})
    (folder / "consolidated.safetensors").write_bytes(b"of another program")
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    convert(folder, tmp_path / "m.edge", quant="f32", golden=False, progress=False)
    got = logits(tmp_path / "m.edge")
    assert_close("llama with leftovers", expected_logits(model, prompt(63)), got, rms=RMS)


def test_a_tied_table_stored_only_as_the_head(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    model = make_model("llama")
    model.save_pretrained(folder)
    write_tokenizer(folder)
    with TensorFile(folder / "model.safetensors") as file:
        tensors = {n: (file.info(n).dtype, np.array(file[n])) for n in file.names()}
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    specs = {n: (dtype, values.shape) for n, (dtype, values) in tensors.items()}
    with TensorWriter(folder / "model.safetensors", specs) as writer:
        for name, (_, values) in tensors.items():
            writer.write(name, values)
    convert(folder, tmp_path / "m.edge", quant="f32", golden=False, progress=False)
    got = logits(tmp_path / "m.edge")
    assert_close("head only", expected_logits(model, prompt(63)), got, rms=RMS)


def offline(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`edgert` with the hub's client switched off the network and its cache in `home`."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    env.pop("HF_HUB_CACHE", None)
    return subprocess.run(
        [sys.executable, "-m", "edgert", *arguments],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_hub_id_offline(tmp_path: Path) -> None:
    """From the client's cache, which is made of links; without it, words that help."""
    pytest.importorskip("huggingface_hub")
    cache = tmp_path / "home" / "hub" / "models--org--name"
    snapshot, blobs = cache / "snapshots" / ("a" * 40), cache / "blobs"
    write("llama", tmp_path / "checkpoint", "bfloat16")
    for folder in (snapshot, blobs, cache / "refs"):
        folder.mkdir(parents=True)
    (cache / "refs" / "main").write_text("a" * 40)
    for number, file in enumerate(sorted((tmp_path / "checkpoint").iterdir())):
        shutil.move(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    out = tmp_path / "m.edge"
    found = offline(
        tmp_path / "home", "convert", "org/name", "-o", str(out), "--quant", "f16", "--json"
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["name"] == "name"
    missing = offline(tmp_path / "home", "convert", "org/other", "-o", str(tmp_path / "n.edge"))
    assert missing.returncode == 2
    assert "org/other is no directory here and could not be downloaded" in missing.stderr
    assert "bring the checkpoint's folder here and give its path" in missing.stderr
    assert not (tmp_path / "n.edge").exists()
