"""The shipped model through conversion, export and both executors: the same greedy story."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.converters.onnx_emit import export
from numpy.typing import NDArray

from edgert.bundle import Bundle
from edgert.demo import demo_bundle, demo_checkpoint
from edgert.session import SessionOptions, open_session
from edgert.session.base import Feed
from edgert.session.providers import DEVICES, is_available

from ..closeness import assert_close, distance

STEPS = 64
PROMPT = (1, 403, 407, 261, 378)  # "Once upon a time" to the shipped tokenizer


def _greedy(
    bundle: Path, device: str, prompt: tuple[int, ...] = PROMPT
) -> tuple[list[int], NDArray[np.float32]]:
    """Token ids, and the logits each was chosen from."""
    with Bundle.open(bundle) as opened:
        session = open_session(opened, SessionOptions(device=device, threads=1))
        state, feed = session.new_state(STEPS + len(prompt)), np.array(prompt, np.int32)
        tokens, logits = [], []
        for _ in range(STEPS):
            logits.append(session.step([Feed(state, feed)])[0].logits[-1])
            state.commit(len(feed))
            tokens.append(int(np.argmax(logits[-1])))
            feed = np.array(tokens[-1:], np.int32)
        session.close()
    return tokens, np.stack(logits)


def _bundle(folder: Path, quant: str) -> Path:
    out = folder / f"{quant}.edge"
    convert(demo_checkpoint(), out, quant=quant, method="rtn", golden=False, progress=False)
    return out


@pytest.mark.parametrize("device", ["ort-cpu", "openvino"])
def test_float_models_tell_the_same_story(device: str, tmp_path: Path) -> None:
    if not is_available(DEVICES[device]):
        pytest.skip(f"{DEVICES[device].name} is not in this onnxruntime")
    bundle = _bundle(tmp_path, "f32")
    export(bundle, standard=DEVICES[device].standard)
    expected, logits = _greedy(bundle, "cpu")
    tokens, got = _greedy(bundle, device)
    assert tokens == expected
    assert_close(device, logits, got, rms=1e-4)


def test_int4_models_part_only_where_it_is_a_toss_up(tmp_path: Path) -> None:
    bundle = _bundle(tmp_path, "int4")
    export(bundle)
    _same_or_a_toss_up(bundle, "ort-cpu", PROMPT)


@pytest.mark.parametrize("device", ["ort-cpu", "openvino"])
def test_the_shipped_bundle_answers_as_on_the_cpu(device: str, tmp_path: Path) -> None:
    if not is_available(DEVICES[device]):
        pytest.skip(f"{DEVICES[device].name} is not in this onnxruntime")
    bundle = tmp_path / "demo.edge"
    shutil.copytree(demo_bundle(), bundle)
    export(bundle, standard=DEVICES[device].standard)
    with Bundle.open(bundle) as opened:
        prompts = [golden.prompt_ids for golden in opened.manifest.golden]
    assert prompts
    for prompt in prompts:
        _same_or_a_toss_up(bundle, device, prompt)


def _same_or_a_toss_up(bundle: Path, device: str, prompt: tuple[int, ...]) -> None:
    """Values on the edge between two codes fall to either side, here and there: where the stories
    part, the two best tokens are closer than the executors' logits."""
    expected, logits = _greedy(bundle, "cpu", prompt)
    tokens, got = _greedy(bundle, device, prompt)
    same = next((i for i in range(STEPS) if tokens[i] != expected[i]), STEPS)
    shared = slice(0, min(same + 1, STEPS))
    relative, largest = distance(logits[shared], got[shared])
    print(f"{device}: {same} tokens alike, relative RMS {relative:.3g}, max abs {largest:.3g}")
    assert relative < 0.05
    if same < STEPS:
        best = np.sort(logits[same])[-2:]
        assert best[1] - best[0] < largest
