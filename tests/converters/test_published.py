"""Small models with the very config keys of published checkpoints, in the form they were published
in and in the form transformers writes today: converted, and equal to transformers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.converters.families import build

from edgert.bundle import Bundle
from edgert.session import Feed, SessionOptions, open_session
from tests.closeness import assert_close
from tests.converters.checkpoints import expected_logits, prompt, scatter, write_tokenizer
from tests.converters.published import CONFIGS, ORIGINAL, WINDOW, shrunk
from tests.converters.test_families import RMS, run

LENGTHS = (1, 63, 500)
FORMS = {"old": CONFIGS, "new": sorted({c["model_type"]: n for n, c in CONFIGS.items()}.values())}
CASES = [(name, form) for form, names in FORMS.items() for name in names]


def checkpoint(name: str, form: str, folder: Path) -> Any:
    """A checkpoint directory whose config.json has the published keys ("old"), or is what
    transformers makes of them ("new"); returns its model."""
    import torch
    import transformers

    torch.set_num_threads(1)
    config = shrunk(name)
    kind = transformers.CONFIG_MAPPING[config["model_type"]]
    torch.manual_seed(sum(map(ord, name)))
    model = transformers.AutoModelForCausalLM.from_config(
        kind(**copy.deepcopy(config)), attn_implementation="eager", dtype=torch.float32
    )
    scatter(model)
    model.save_pretrained(folder)
    if form == "old":
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tokenizer(folder)
    return model.eval()


@pytest.mark.parametrize(("name", "form"), CASES)
def test_equals_transformers(name: str, form: str, tmp_path: Path) -> None:
    model = checkpoint(name, form, tmp_path / "checkpoint")
    out = tmp_path / "out.edge"
    convert(tmp_path / "checkpoint", out, quant="f32", golden=False, progress=False)
    with Bundle.open(out) as bundle:
        session = open_session(bundle, SessionOptions(device="cpu", threads=1))
        for count in LENGTHS:
            label = f"{name} ({form}), {count} tokens"
            assert_close(label, expected_logits(model, prompt(count)), run(session, prompt(count)),
                         rms=RMS)  # fmt: skip
        first, second = prompt(70, seed=1), prompt(45, seed=2)
        alone = [run(session, ids, chunk=1) for ids in (first, second)]
        feeds = [Feed(session.new_state(len(ids)), ids, "all") for ids in (first, second)]
        for expected, got in zip(alone, session.step(feeds), strict=True):
            assert np.array_equal(expected, got.logits), f"{name}: batch against token by token"
        session.close()


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_todays_form_gives_the_same_graph(name: str) -> None:
    import transformers

    config = shrunk(name)
    again = transformers.CONFIG_MAPPING[config["model_type"]](**copy.deepcopy(config))
    for new in (again.to_diff_dict(), again.to_dict()):
        first, second = build(config), build(new)
        assert first.graph.to_json() == second.graph.to_json()
        for weight, recipe in first.tensors.items():
            if recipe.values is not None:
                assert np.array_equal(recipe.values, second.tensors[weight].values), weight


def test_the_first_name_of_longrope_means_the_same() -> None:
    """The first revisions of Phi-3 say "su", which transformers no longer reads."""
    config = shrunk("Phi-3-mini-128k")
    old = {**config, "rope_scaling": {**config["rope_scaling"], "type": "su"}}
    assert build(old).graph.to_json() == build(config).graph.to_json()


def test_small_configs_keep_every_key_and_reach_every_switch() -> None:
    for name, config in CONFIGS.items():
        assert set(shrunk(name)) == set(config), name
    attrs = {
        name: [node.attrs for node in build(shrunk(name)).graph.nodes if node.op == "attention"]
        for name in CONFIGS
    }
    assert {a.get("window", 0) for a in attrs["gemma-3-1b"]} == {0, WINDOW}
    assert attrs["Phi-4-mini"][0]["rope_switch"] == ORIGINAL
    assert max(LENGTHS) > ORIGINAL > WINDOW
