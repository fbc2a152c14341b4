"""Hostile checkpoints: rows H14 to H17 of the list of bad inputs.

Each test takes a good tiny checkpoint and spoils it in one named way.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from benchmarks.make_checkpoint import make_checkpoint
from edgert.bundle import Bundle
from edgert.errors import ConvertError
from edgert.storage.safetensors import TensorFile
from edgert.storage.safetensors_writer import TensorWriter
from tests.converters.faults import convert_tiny

Specs = dict[str, tuple[str, np.ndarray]]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return make_checkpoint("tiny", tmp_path / "tiny", dtype="f32")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "m.edge"


def refusal(checkpoint: Path, out: Path, **options: Any) -> ConvertError:
    """The error of a conversion that must fail and leave nothing behind."""
    with pytest.raises(ConvertError) as info:
        convert_tiny(checkpoint, out, **options)
    assert not out.exists()
    assert not list(out.parent.glob("*.partial-*"))
    assert info.value.hint
    return info.value


def edit(folder: Path, change: Callable[[Specs], None]) -> None:
    """Rewrite model.safetensors after `change` to its tensors {name: (dtype, values)}."""
    path = folder / "model.safetensors"
    with TensorFile(path) as file:
        tensors = {name: (file.info(name).dtype, np.array(file[name])) for name in file.names()}
    change(tensors)
    specs = {name: (dtype, values.shape) for name, (dtype, values) in tensors.items()}
    with TensorWriter(path, specs) as writer:
        for name, (_, values) in tensors.items():
            writer.write(name, values)


def configure(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), encoding="utf-8")


# H14: code in a checkpoint never runs


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.marker, "ran"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_h14_pickles_are_refused_unread(good: Path, out: Path, tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    (good / "model.safetensors").unlink()
    (good / name).write_bytes(pickle.dumps(Payload(marker)))
    error = refusal(good, out)
    assert error.code == "pickle"
    assert name in error.message
    assert "safetensors" in error.hint
    assert not marker.exists()
    pickle.loads((good / name).read_bytes())
    assert marker.exists(), "the payload is harmless, so the test proves nothing"


def test_h14_remote_code_is_refused_and_never_run(good: Path, out: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (good / "modeling.py").write_text(f"open({str(marker)!r}, 'w')\n", encoding="utf-8")
    configure(good, auto_map={"AutoModelForCausalLM": "modeling.Model"}, architectures=None)
    error = refusal(good, out)
    assert error.code == "remote-code"
    assert "auto_map" in error.message
    assert "--ignore-remote-code" in error.hint
    convert_tiny(good, out, ignore_remote_code=True)
    with Bundle.open(out) as bundle:
        assert bundle.manifest.provenance.command.endswith(" --ignore-remote-code")
    assert not marker.exists()
    assert "modeling" not in sys.modules


def test_h14_the_flag_does_not_make_an_unknown_model_known(good: Path, out: Path) -> None:
    configure(good, auto_map={"AutoModel": "modeling.Model"}, model_type="mystery")
    assert refusal(good, out, ignore_remote_code=True).code == "model-type"


def test_h14_nothing_is_fetched_for_a_path(out: Path, tmp_path: Path) -> None:
    with mock.patch.dict(sys.modules, {"huggingface_hub": None}):
        for source in (str(tmp_path / "no" / "where"), "./no/where", tmp_path / "none"):
            assert refusal(source, out).code == "source"  # type: ignore[arg-type]
        error = refusal("org/name", out)  # type: ignore[arg-type]
    assert error.code == "missing-package"
    assert "pip install huggingface_hub" in error.hint


# H15: missing, extra and wrong tensors, in one error


def test_h15_one_error_lists_missing_extra_and_wrong_tensors(good: Path, out: Path) -> None:
    def spoil(tensors: Specs) -> None:
        del tensors["model.layers.0.mlp.up_proj.weight"]
        del tensors["model.norm.weight"]
        tensors["model.layers.2.extra.weight"] = ("F32", np.zeros((2, 2), np.float32))
        tensors["model.layers.0.self_attn.q_proj.weight"] = ("I64", np.zeros((64, 64), np.int64))
        dtype, values = tensors["model.layers.1.mlp.down_proj.weight"]
        tensors["model.layers.1.mlp.down_proj.weight"] = (dtype, values[:, :-1].copy())

    edit(good, spoil)
    message = refusal(good, out).message
    for part in (
        "5 faults",
        "tensor 'model.layers.0.mlp.up_proj.weight' [160, 64] is missing",
        "tensor 'model.norm.weight' [64] is missing",
        "tensor 'model.layers.2.extra.weight' [2, 2] is unexpected",
        "tensor 'model.layers.0.self_attn.q_proj.weight' is I64, expected one of",
        "tensor 'model.layers.1.mlp.down_proj.weight' is [64, 159], expected [64, 160]",
    ):
        assert part in message


def test_h15_config_and_tensor_faults_come_together(good: Path, out: Path) -> None:
    configure(good, mystery=1)
    edit(good, lambda tensors: tensors.pop("model.norm.weight"))
    message = refusal(good, out).message
    assert "'mystery'" in message
    assert "'model.norm.weight'" in message


def test_h15_computed_buffers_of_old_checkpoints_are_no_fault(good: Path, out: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(good, lambda tensors: tensors.update({name: ("F32", np.ones(8, np.float32))}))
    convert_tiny(good, out)


def test_h15_tied_weights_twice(good: Path, out: Path) -> None:
    def twice(tensors: Specs) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]

    def shorter(tensors: Specs) -> None:
        dtype, values = tensors["lm_head.weight"]
        tensors["lm_head.weight"] = (dtype, values[:-1])

    edit(good, twice)
    convert_tiny(good, out)
    shutil.rmtree(out)
    edit(good, shorter)
    message = refusal(good, out).message
    assert "'lm_head.weight' differs from 'model.embed_tokens.weight'" in message


def test_h15_untied_head_must_be_there(good: Path, out: Path) -> None:
    configure(good, tie_word_embeddings=False)
    assert "tensor 'lm_head.weight' [512, 64] is missing" in refusal(good, out).message


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return make_checkpoint("tiny", tmp_path / "sharded", shards=3)


def reindex(folder: Path, **placed: str) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text("utf-8"))
    index["weight_map"].update(placed)
    path.write_text(json.dumps(index), encoding="utf-8")


def test_h15_missing_shard(sharded: Path, out: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    message = refusal(sharded, out).message
    assert "shard 'model-00002-of-00003.safetensors' is missing, with" in message
    assert "is missing\n" in message, "its tensors are listed too"


def test_h15_index_and_shards_disagree(sharded: Path, out: Path) -> None:
    reindex(
        sharded,
        **{
            "ghost.weight": "model-00001-of-00003.safetensors",
            "model.norm.weight": "model-00001-of-00003.safetensors",
        },
    )
    message = refusal(sharded, out).message
    assert "names 'ghost.weight' in model-00001-of-00003.safetensors, which does not" in message
    assert "'model.norm.weight' is in model-00003-of-00003.safetensors, the index says" in message


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_h15_shards_lie_in_the_checkpoint(sharded: Path, out: Path, name: str) -> None:
    shutil.copy(
        sharded / "model-00001-of-00003.safetensors", sharded.parent / "outside.safetensors"
    )
    reindex(sharded, **{"ghost.weight": name})
    assert name in refusal(sharded, out).message


def test_h15_a_tensor_in_two_shards(sharded: Path, out: Path) -> None:
    last = sharded / "model-00003-of-00003.safetensors"
    shutil.copy(last, sharded / "model-00004-of-00003.safetensors")
    reindex(sharded, **{"ghost.weight": "model-00004-of-00003.safetensors"})
    message = refusal(sharded, out).message
    assert "is in model-00003-of-00003.safetensors and in model-00004-of-00003" in message


@pytest.mark.parametrize("keep", [0, 7, 100, -5])
def test_h15_truncated_weights(good: Path, out: Path, keep: int) -> None:
    path = good / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    assert str(path) in refusal(good, out).message


@pytest.mark.skipif(os.name == "nt", reason="FIFOs of POSIX")
@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "generation_config.json", "tokenizer.json"]
)
@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_h15_a_file_that_is_none_is_not_taken_for_absent(
    good: Path, out: Path, name: str, kind: str
) -> None:
    (good / name).unlink(missing_ok=True)
    make = {"link": lambda path: path.symlink_to("gone"), "fifo": os.mkfifo, "folder": os.mkdir}
    make[kind](good / name)
    assert f"{good / name} is a link that leads nowhere or no regular file" in (
        refusal(good, out).message
    )


# H16: what is not known is refused


def test_h16_unknown_model_type_names_the_nearest(good: Path, out: Path) -> None:
    configure(good, model_type="lama")
    error = refusal(good, out)
    assert "'lama'" in error.message
    assert "nearest: llama" in error.message
    configure(good, model_type=["llama"])
    assert refusal(good, out).code == "model-type"


def test_h16_a_model_of_several_parts_says_which_is_known(good: Path, out: Path) -> None:
    configure(good, model_type="gemma3", text_config={"model_type": "gemma3_text"})
    error = refusal(good, out)
    assert error.code == "model-type"
    assert "the text part, 'gemma3_text'; expected that part alone" in error.message


def test_h16_unknown_key_and_rope_type(good: Path, out: Path) -> None:
    configure(good, alibi=True, rope_scaling={"rope_type": "spiral", "factor": 2.0})
    message = refusal(good, out).message
    assert "2 faults" in message
    assert "config key 'alibi' (= True) is unknown" in message
    assert "rope_type is 'spiral', expected one of" in message


# H17: weights that are no numbers


def test_h17_nan_names_tensor_and_count_and_keeps_the_stage(good: Path, out: Path) -> None:
    def poison(tensors: Specs) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][1][3:5, 7] = np.nan
        tensors["model.layers.1.mlp.up_proj.weight"][1][9, 9] = np.inf

    edit(good, poison)
    error = refusal(good, out)
    assert error.code == "weight-values"
    assert (
        "tensor 'model.layers.1.mlp.up_proj.weight' holds 2 NaN and 1 infinite values of 10240"
        in error.message
    )
    assert (out.parent / "m.edge.stage/model/quantize/journal").read_bytes().count(b"\n") > 3
    said = f"what is done stays in {out}.stage: the same command goes on from there"
    assert error.hint.endswith(said)


def test_h17_values_that_do_not_fit(good: Path, out: Path) -> None:
    def grow(tensors: Specs) -> None:
        tensors["model.layers.0.self_attn.o_proj.weight"][1][0, 0] = 1e30

    edit(good, grow)
    for quant in ("f16", "int8", "int4"):
        error = refusal(good, out, quant=quant)
        assert error.code == "weight-range"
        assert "'model.layers.0.self_attn.o_proj.weight', rows 0 to" in error.message
    convert_tiny(good, out, quant="f32")


def test_h17_zero_weights_stay_zero(good: Path, out: Path) -> None:
    edit(good, lambda tensors: tensors["model.layers.0.mlp.up_proj.weight"][1].fill(0))
    report = convert_tiny(good, out)
    assert all(np.isfinite(weight.error) for weight in report.weights)


def test_h17_a_disk_that_cannot_be_read_is_named(good: Path, out: Path) -> None:
    from edgert.converters.sources.checkpoint import Shard

    real, reads = Shard._fill, 0

    def fill(self: Shard, *args: Any) -> None:
        nonlocal reads
        reads += 1
        if reads == 5:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(self, *args)

    with mock.patch.object(Shard, "_fill", fill):
        error = refusal(good, out)
    assert error.code == "checkpoint-read"
    assert str(good / "model.safetensors") in error.message
