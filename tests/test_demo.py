"""The shipped models: whole, found where the package is, and told about by `edgert demo`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import edgert
from edgert import demo
from edgert.errors import ResourceError
from edgert.verify import verify_bundle


def run_demo(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgert", "demo", *args]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_the_shipped_bundle_is_what_its_maker_wrote() -> None:
    report = verify_bundle(demo.demo_bundle(), values=True)
    assert not report.problems()
    assert report.name == demo.NAME


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
