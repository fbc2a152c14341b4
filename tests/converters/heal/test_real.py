"""Healing trained models, by the functions of `benchmarks/heal.py`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from edgert.converters.calibrate import sequences_of
from edgert.converters.heal import Healed, HealOptions, heal

from benchmarks.heal import line, load, rounded, row
from edgert.demo import demo_checkpoint


def healed(checkpoint: Path, text: Path, name: str, length: int, options: HealOptions) -> Healed:
    count = options.tokens // length + options.held_out
    model = load(checkpoint, text, count * length)
    graph, weights = rounded(model, name)
    sequences = sequences_of(model.ids, length, count)
    found = heal(graph, weights, model.graph, model.weights, sequences, options)
    print(row(line(model.name, name, options, found)))
    return found


@pytest.mark.parametrize("method", ["scales", "straight-through"])
def test_two_bits_of_a_story_teller_are_healed(
    method: str, shared_data: Path, tmp_path: Path
) -> None:
    stories = shared_data / "text-tinystories-sample" / "stories.jsonl.gz"
    text = tmp_path / "stories.txt"
    with gzip.open(stories, "rt", encoding="utf-8") as file:
        told = [json.loads(story) for story in file]
    text.write_text("\n".join(told), encoding="utf-8")
    torch.set_num_threads(1)
    asked = HealOptions(16_000, method, batch=4, held_out=16, device="cpu")
    found = healed(demo_checkpoint(), text, "uint2-g64", 64, asked)
    assert found.improved
    assert found.after < 0.75 * found.before
    assert found.end.nats < found.start.nats
    assert found.source < found.start.nats


@pytest.mark.slow
@pytest.mark.parametrize("method", ["scales", "straight-through"])
def test_two_bits_of_a_chat_model_are_healed(
    method: str, trained_checkpoint: Path, shared_data: Path
) -> None:
    text = shared_data / "text-wikipedia-plain" / "valid.txt.xz"
    asked = HealOptions(8192, method, batch=2, held_out=8, device="cpu")
    found = healed(trained_checkpoint, text, "uint2-g64", 128, asked)
    assert found.improved
    assert found.after < 0.75 * found.before
    assert found.end.nats < found.start.nats
