"""The shipped models: whole, found where the package is, and described by `edgert demo`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from edgert.converters.convert import convert

import edgert
from edgert import demo
from edgert.bundle import Bundle
from edgert.errors import ResourceError
from edgert.evaluation.verify import verify_bundle
from recipes.demo_text.card import CARD
from recipes.demo_text.evaluate import PROMPTS
from recipes.demo_text.sources import LICENCES

from .conftest import ROOT

CARD_FILE = ROOT / "recipes" / "demo_text" / "MODEL_CARD.md"


def run_demo(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgert", "demo", *args]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_the_shipped_bundle_is_what_its_maker_wrote() -> None:
    report = verify_bundle(demo.demo_bundle(), values=True)
    assert not report.problems()
    assert report.name == demo.NAME


def test_the_shipped_bundle_is_as_todays_converter_writes_it(
    trained_checkpoint: Path, tmp_path: Path
) -> None:
    """The command in `edgert/demo/__init__.py` on a checkpoint of the same shape and tokenizer:
    everything but the learnt numbers, the context and the rotary base is the same."""
    again = tmp_path / "again.edge"
    convert(trained_checkpoint, again, name=demo.NAME, golden=False, progress=False)
    with Bundle.open(again) as made, Bundle.open(demo.demo_bundle()) as shipped:
        assert made.manifest.text == shipped.manifest.text
        ours, theirs = made.manifest.files, shipped.manifest.files
        assert set(ours) == set(theirs)
        for name in ("tokenizer.json", "chat_template.jinja"):
            assert ours[name] == theirs[name]
        assert ours["weights.safetensors"].size == theirs["weights.safetensors"].size
        assert made.graph().weights == shipped.graph().weights
        assert [node.op for node in made.graph().nodes] == [n.op for n in shipped.graph().nodes]


def test_converting_a_trained_checkpoint_twice_gives_the_same_bytes(
    trained_checkpoint: Path, tmp_path: Path
) -> None:
    files = []
    for name in ("first", "second"):
        out = tmp_path / name / "model.edge"
        convert(trained_checkpoint, out, golden=False, progress=False)
        with Bundle.open(out) as bundle:
            files.append(bundle.manifest.files)
    assert files[0] == files[1]


def test_the_model_card_ships_with_the_model() -> None:
    card = (demo.demo_bundle() / "README.md").read_text(encoding="utf-8")
    assert card == CARD_FILE.read_text(encoding="utf-8")
    template = [line for line in CARD.splitlines() if line.startswith(("## ", "<!-- "))]
    assert [line for line in card.splitlines() if line.startswith(("## ", "<!-- "))] == template
    assert "Not measured" not in card
    for licence in LICENCES:
        assert f"| {licence.name} | {licence.origin} | {licence.licence} |" in card


def answers_of(card: str, section: str) -> dict[str, str]:
    """Prompt and answer, as they stand under a heading of the card."""
    text = card.split(f"\n## {section}")[1].split("\n## ")[0]
    pairs = re.findall(r"\*\*(.+?)\*\*\n\n((?:> .*\n)+)", text)
    return {prompt: re.sub(r"(?m)^> ", "", answer).strip() for prompt, answer in pairs}


@pytest.mark.slow
def test_the_cards_answers_are_the_models() -> None:
    """Greedy answers, int4 through edgert. Another instruction set may round another way."""
    card = (demo.demo_bundle() / "README.md").read_text(encoding="utf-8")
    expected = answers_of(card, "The same prompts, answered by the int4 bundle")
    assert list(expected) == list(PROMPTS)
    with edgert.load(demo.demo_bundle()) as model:
        for prompt, answer in expected.items():
            found = model.chat([{"role": "user", "content": prompt}], temperature=0, max_tokens=320)
            assert found.text.strip() == answer


@pytest.mark.slow
def test_a_trained_checkpoints_answers_are_those_of_transformers(
    trained_checkpoint: Path, tmp_path: Path
) -> None:
    """Greedy, from the stored weights, through an f32 bundle: transformers, which reads each answer
    in one pass, would have chosen every token of it."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    out = tmp_path / "model.edge"
    convert(trained_checkpoint, out, quant="f32", golden=False, progress=False)
    peer = transformers.AutoModelForCausalLM.from_pretrained(trained_checkpoint, dtype="float32")
    with edgert.load(out) as model:
        for prompt in PROMPTS:
            messages = [{"role": "user", "content": prompt}]
            found = model.chat(messages, temperature=0, max_tokens=160)
            ids = [*model.chat_ids(messages), *found.token_ids]
            with torch.no_grad():
                best = peer(torch.tensor([ids])).logits[0].argmax(1)
            assert best[-len(found.token_ids) - 1 : -1].tolist() == list(found.token_ids)


def test_the_demo_samples_as_its_card_says() -> None:
    with Bundle.open(demo.demo_bundle()) as bundle:
        assert bundle.manifest.text.generation == {
            "temperature": 0.7, "top_k": 0, "top_p": 0.9,
        }  # fmt: skip


def test_the_shipped_bundle_chats() -> None:
    with edgert.load(demo.demo_bundle()) as model:
        answer = model.chat([{"role": "user", "content": "Hello!"}], temperature=0, max_tokens=40)
    assert answer.finish_reason == "stop"
    assert len(answer.text.split()) > 2


@pytest.mark.parametrize(
    ("find", "name"), [(demo.demo_bundle, "NAME"), (demo.demo_checkpoint, "CHECKPOINT")]
)
def test_a_missing_model_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, find: object, name: str
) -> None:
    monkeypatch.setattr(demo, name, "absent")
    assert callable(find)
    with pytest.raises(ResourceError, match=r"absent.*, expected") as caught:
        find()
    assert "pip install --force-reinstall edgert" in caught.value.hint


def test_the_verb_converts_answers_and_says_what_to_type_next() -> None:
    done = run_demo("-n", "40")
    assert done.stdout.count("\n> ") == 2
    assert len(done.stdout.split()) > 40
    for said in (
        f"{demo.CHECKPOINT}: a checkpoint of ",
        f"{demo.NAME}: ",
        "MB on disk, loaded in ",
        " a second",
        "Type next:\n  edgert chat ",
    ):
        assert said in done.stderr


def test_the_verb_as_json() -> None:
    found = json.loads(run_demo("-n", "3", "--json").stdout)
    assert found["schema"] == 1
    assert found["conversion"]["bundle_bytes"] < found["conversion"]["checkpoint_bytes"]
    assert [len(answer["token_ids"]) for answer in found["answers"]] == [3, 3]
