"""Requests with adapters: by path, several together, in conversations and on the command line."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from edgert.converters.convert import convert

import edgert
from edgert.cli import run
from edgert.errors import BundleError, DeviceError, RequestError
from tests.adapters import factors, write_adapter
from tests.converters.checkpoints import write_checkpoint

PROMPT = "Once upon a time"
Q, V = "model.layers.{}.self_attn.q_proj", "model.layers.{}.self_attn.v_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle and two adapters."""
    path = tmp_path_factory.mktemp("adapted")
    write_checkpoint("llama", path / "checkpoint")
    convert(path / "checkpoint", path / "m.edge", method="rtn", golden=False, progress=False)
    for seed in (1, 2):
        shapes = {Q.format(i): (64, 64) for i in range(3)} | {V.format(i): (32, 64) for i in (0, 2)}
        write_adapter(path / f"a{seed}", factors(shapes, seed=seed, size=3.0))
    return path


@pytest.fixture
def model(folder: Path) -> Iterator[Any]:
    with edgert.load(folder / "m.edge", threads=1, draft="none") as opened:
        yield opened


def answer(model: Any, adapter: Path | None) -> Any:
    return model.generate(PROMPT, max_tokens=24, temperature=0, adapter=adapter)


def test_answers_are_their_adapters_together_and_alone(model: Any, folder: Path) -> None:
    adapters = [folder / "a1", None, folder / "a2", folder / "a1"]
    alone = [answer(model, adapter).token_ids for adapter in adapters]
    assert len({*alone}) == 3, "adapters that change nothing prove nothing"
    streams = [
        model.stream(PROMPT, max_tokens=24, temperature=0, adapter=adapter) for adapter in adapters
    ]
    together: list[Any] = [None] * 4

    def finish(index: int) -> None:
        together[index] = streams[index].finish().token_ids

    threads = [threading.Thread(target=finish, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_a_prompt_that_comes_again_is_known_to_its_adapter(model: Any, folder: Path) -> None:
    prompt = PROMPT * 12
    first = model.generate(prompt, max_tokens=2, adapter=folder / "a1")
    other = model.generate(prompt, max_tokens=2, adapter=folder / "a2")
    again = model.generate(prompt, max_tokens=2, adapter=folder / "a1")
    assert (first.usage.cached_tokens, other.usage.cached_tokens) == (0, 0)
    assert again.usage.cached_tokens > 100
    assert again.token_ids == first.token_ids


def test_conversations_keep_their_adapter(model: Any, folder: Path, tmp_path: Path) -> None:
    options = {"max_tokens": 8, "temperature": 0}
    with model.conversation(adapter=folder / "a1") as chat, model.conversation() as plain:
        said = chat.say("Hello", **options).text
        assert said != plain.say("Hello", **options).text
        assert model.chat(chat.messages[:1], adapter=folder / "a1", **options).text == said
        chat.save(tmp_path / "chat")
        expected = chat.say("And then?", **options).text
    with edgert.load(folder / "m.edge", threads=1) as other:
        assert other.restore(tmp_path / "chat").say("And then?", **options).text == expected


def test_a_saved_conversation_whose_adapter_changed_is_refused(
    model: Any, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "a1", tmp_path / "mine")
    with model.conversation(adapter=tmp_path / "mine") as chat:
        chat.say("Hello", max_tokens=4)
        chat.save(tmp_path / "chat")
    shutil.rmtree(tmp_path / "mine")
    shutil.copytree(folder / "a2", tmp_path / "mine")
    with pytest.raises(RequestError, match="made with another adapter"):
        model.restore(tmp_path / "chat")


def test_what_cannot_be_used_is_refused(model: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="adapter is 3"):
        answer(model, 3)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=r"has no adapter_config\.json"):
        answer(model, tmp_path)
    other = write_adapter(tmp_path / "other", factors({Q.format(9): (64, 64)}))
    with pytest.raises(RequestError, match=r"changes 1 products .*layers\.9") as caught:
        answer(model, other)
    assert "--adapter DIR" in caught.value.hint
    tensors = factors({Q.format(0): (64, 64)})
    tensors["lm_head.weight"] = tensors[f"{Q.format(0)}.lora_A.weight"]
    with pytest.raises(RequestError, match=r"holds whole tensors \(lm_head\.weight\)"):
        answer(model, write_adapter(tmp_path / "whole", tensors, modules_to_save=["lm_head"]))


def test_a_bundle_that_does_not_tell_its_tensors(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "m.edge", tmp_path / "old.edge")
    (tmp_path / "old.edge" / "model.tensors.json").unlink()
    manifest = tmp_path / "old.edge" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["files"]["model.tensors.json"]
    manifest.write_text(json.dumps(content))
    with edgert.load(tmp_path / "old.edge", threads=1) as old:
        assert answer(old, None).token_ids
        with pytest.raises(BundleError, match=r"has no model\.tensors\.json"):
            answer(old, folder / "a1")


def test_onnxruntime_refuses_adapters_apart(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from edgert.converters.onnx_emit import export

    shutil.copytree(folder / "m.edge", tmp_path / "m.edge")
    export(tmp_path / "m.edge")
    with (
        edgert.load(tmp_path / "m.edge", device="ort-cpu") as model,
        pytest.raises(DeviceError, match="expected the device cpu or reference") as caught,
    ):
        answer(model, folder / "a1")
    assert "merge it" in caught.value.hint


def test_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, flags = str(folder / "m.edge"), ["-p", PROMPT, "--temp", "0", "-n", "8", "-t", "1"]
    texts = []
    for verb in ("generate", "chat"):
        for more in ([], ["--adapter", str(folder / "a1")]):
            assert run([verb, bundle, *flags, *more]) == 0
            texts.append(capsys.readouterr().out)
    assert texts[0] != texts[1]
    assert texts[2] != texts[3]
