"""The shipped models: whole, found where the package is, and described by `edgert demo`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from tokenizers import Tokenizer

import edgert
from edgert import demo
from edgert.bundle import Bundle
from edgert.cli.demo_checkpoint import write_checkpoint
from edgert.errors import ResourceError
from edgert.evaluation.verify import verify_bundle
from edgert.image.pictures import read_settings
from edgert.storage.cachedir import cache_root
from edgert.storage.hash_cache import HashCache, cache_path
from recipes.demo_text import sources
from recipes.demo_text.card import CARD
from recipes.demo_text.evaluate import PROMPTS
from recipes.demo_text.problems import held_out_problems, is_right
from recipes.demo_text.recall import held_out_documents
from recipes.demo_text.sources import LICENCES

from .conftest import ROOT

CARD_FILE = ROOT / "recipes" / "demo_text" / "MODEL_CARD.md"


def run_demo(*args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgert", "demo", *args]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=env, stdin=subprocess.DEVNULL
    )


def rounded(checkpoint: Path, out: Path, **options: Any) -> None:
    """A conversion as the demo's was: int4, to nearest."""
    convert(checkpoint, out, method="rtn", golden=False, progress=False, **options)


def test_the_shipped_bundle_is_what_its_maker_wrote() -> None:
    report = verify_bundle(demo.demo_bundle(), values=True)
    assert not report.problems()
    assert report.name == demo.NAME


def test_the_shipped_bundle_is_as_todays_converter_writes_it(
    trained_checkpoint: Path, tmp_path: Path
) -> None:
    """The command in `edgert/demo/__init__.py` on the checkpoint it was made from: everything but
    the card, which the checkpoint has in a form of its own, and the white space of tokenizer.json,
    which does not ship."""
    again = tmp_path / "again.edge"
    rounded(trained_checkpoint, again, name=demo.NAME)
    with Bundle.open(again) as made, Bundle.open(demo.demo_bundle()) as shipped:
        assert made.manifest.text == shipped.manifest.text
        ours, theirs = made.manifest.files, shipped.manifest.files
        assert set(ours) == set(theirs)
        for name in set(ours) - {"README.md", "tokenizer.json"}:
            assert ours[name] == theirs[name], name
        tokenizers = [json.loads(bundle.read("tokenizer.json")) for bundle in (made, shipped)]
        assert tokenizers[0] == tokenizers[1]
        assert made.manifest.provenance.sources == shipped.manifest.provenance.sources


def test_converting_a_trained_checkpoint_twice_gives_the_same_bytes(
    trained_checkpoint: Path, tmp_path: Path
) -> None:
    files = []
    for name in ("first", "second"):
        out = tmp_path / name / "model.edge"
        rounded(trained_checkpoint, out)
        with Bundle.open(out) as bundle:
            files.append(bundle.manifest.files)
    assert files[0] == files[1]


def test_the_model_card_ships_with_the_model() -> None:
    card = (demo.demo_bundle() / "README.md").read_text(encoding="utf-8")
    assert card == CARD_FILE.read_text(encoding="utf-8")
    template = [line for line in CARD.splitlines() if line.startswith(("## ", "<!-- "))]
    assert [line for line in card.splitlines() if line.startswith(("## ", "<!-- "))] == template
    assert "Not measured" not in card
    assert "not measured through edgert yet" not in card
    assert f"license: {demo.LICENCE.lower().replace(' ', '-', 1).replace(' ', '-')}" in card
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
    ("find", "name"),
    [
        (demo.demo_bundle, "NAME"),
        (demo.image_bundle, "IMAGE_NAME"),
        (demo.demo_checkpoint, "CHECKPOINT"),
        (demo.quality, "QUALITY"),
    ],
)
def test_a_missing_model_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, find: object, name: str
) -> None:
    monkeypatch.setattr(demo, name, "absent")
    assert callable(find)
    with pytest.raises(ResourceError, match=r"absent.*, expected") as caught:
        find()
    assert "pip install --force-reinstall edgert" in caught.value.hint


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run without a terminal, in an empty temporary folder: its text, and what it left there."""
    return run_in(tmp_path_factory.mktemp("text"), "-n", "120", "-t", "1")


@pytest.fixture(scope="module")
def as_json(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_in(tmp_path_factory.mktemp("json"), "-n", "120", "-t", "1", "--json")


def run_in(folder: Path, *args: str) -> dict[str, Any]:
    (folder / "tmp").mkdir()
    with Bundle.open(demo.demo_bundle()) as shipped:
        own = {shipped.manifest.files["weights.safetensors"].sha256[:24]}
    with Bundle.open(demo.image_bundle()) as shipped:
        files = shipped.manifest.files
        own |= {files[part.weights].sha256[:24] for part in shipped.manifest.parts.values()}
    packed, names = cache_root() / "packed", lambda: {path.name for path in packed.glob("*")}
    before = names()
    picture = folder / "picture.png"
    done = run_demo(*args, "-o", str(picture), env=os.environ | {"TMPDIR": str(folder / "tmp")})
    known = cache_path().read_text(encoding="utf-8") if cache_path().is_file() else ""
    return {
        "text": done.stdout,
        "errors": done.stderr,
        "left": list((folder / "tmp").iterdir()),
        "packed": {name for name in names() - before if not name.startswith(tuple(own))},
        "picture": picture,
        "remembered": str(folder) in known,
    }


def test_the_verb_shows_size_quality_speed_an_answer_and_what_is_next(
    shown: dict[str, Any],
) -> None:
    text = shown["text"]
    parts = [
        "23.6 M parameters",
        f"Weights under {demo.LICENCE}",
        "\nSize\n",
        "\nQuality kept (",
        "\nSpeed here",
        "\nAn answer",
        "<think>",
        "</think>",
        "\nA picture: ",
        "\nType next\n  edgert chat ",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert re.search(r"before +47\.\d MB .*\n  after +16\.\d MB .*: 3\d%\n", text)
    assert "the weights that ship, byte for byte" in text
    assert re.search(r"reads +\d+ +\d+ +\d+\.\d times\n  writes +\d+ +\d+ +\d+\.\d times", text)
    assert "\x1b" not in text + shown["errors"]
    assert "Traceback" not in shown["errors"]


def test_the_verb_leaves_nothing_behind(shown: dict[str, Any], as_json: dict[str, Any]) -> None:
    for run in (shown, as_json):
        assert run["left"] == []
        assert run["packed"] == set()
        assert not run["remembered"]


def test_the_verb_as_json(as_json: dict[str, Any]) -> None:
    found = json.loads(as_json["text"])
    assert set(found) == {
        "schema", "model", "conversion", "quality", "speed", "answer", "picture", "next",
    }  # fmt: skip
    assert found["schema"] == 3
    assert found["model"]["context"] == 2048
    done = found["conversion"]
    assert done["same_weights_as_shipped"]
    assert 2.5 < done["checkpoint_bytes"] / done["bundle_bytes"] < 3.5
    assert found["quality"] == demo.quality()
    assert all(found["speed"][name][key] > 0 for name in ("f16", "int4")
               for key in ("read_tps", "write_tps"))  # fmt: skip
    assert found["answer"]["text"].endswith("</think>\n\nTom has 8 apples.")
    assert found["answer"]["finish_reason"] == "stop"
    assert found["next"][0] == "edgert chat"


def test_the_picture_stays_with_its_settings(shown: dict[str, Any]) -> None:
    settings = read_settings(shown["picture"])
    assert settings is not None
    assert settings["model"] == demo.IMAGE_NAME
    assert settings["evaluations"] < settings["steps"]


def test_next_commands_are_commands(as_json: dict[str, Any]) -> None:
    verbs = {line.split()[1] for line in json.loads(as_json["text"])["next"]}
    for verb in verbs:
        done = subprocess.run([sys.executable, "-m", "edgert", verb, "--help"],
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_what_the_demo_shows_of_quality_was_measured() -> None:
    rows = {row["measure"]: row for row in demo.quality()["rows"]}
    bits = rows["Wikipedia, bits per byte"]
    assert bits["f16"] < bits["int4"] < 1.02 * bits["f16"]
    thinking, direct = rows["word problems, thinking"], rows["the same without thinking"]
    assert direct["int4"] < 0.3 < 0.9 < thinking["int4"]


def test_the_checkpoint_is_the_bundle_again(tmp_path: Path) -> None:
    """Every file but the card, which a checkpoint of the package does not repeat."""
    with Bundle.open(demo.demo_bundle()) as shipped:
        checkpoint = write_checkpoint(shipped, tmp_path / demo.NAME)
        rounded(checkpoint, tmp_path / "again.edge")
        with Bundle.open(tmp_path / "again.edge") as made:
            assert made.manifest.text == shipped.manifest.text
            files = dict(shipped.manifest.files)
            files.pop("README.md")
            assert dict(made.manifest.files) == files


def test_the_checkpoint_reads_as_one_elsewhere(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    with Bundle.open(demo.demo_bundle()) as shipped:
        checkpoint = write_checkpoint(shipped, tmp_path / demo.NAME)
    peer = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32")
    convert(checkpoint, tmp_path / "f32.edge", quant="f32", golden=False, progress=False)
    with edgert.load(tmp_path / "f32.edge") as model:
        ids = model.tokenize("A mouse lived in an old house.")
        ours = model.logits(ids)
    with torch.no_grad():
        theirs = peer(torch.tensor([ids])).logits[0].numpy()
    assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs)


def test_it_thinks_before_it_answers_a_word_problem() -> None:
    """Problems of every kind that training avoided; most come out right, with thoughts first."""
    some = {p.kind: p for p in held_out_problems(60)}
    with edgert.load(demo.demo_bundle()) as model:
        answers = {
            kind: model.chat(
                [{"role": "user", "content": p.question}], temperature=0, max_tokens=320
            ).text
            for kind, p in some.items()
        }
    assert len(answers) >= 12
    assert all(re.match(r"<think>\n.+\n</think>\n\n\S", text) for text in answers.values())
    right = sum(is_right(answers[kind], p.value, p.choices) for kind, p in some.items())
    assert right >= 0.75 * len(some)


def test_it_recalls_a_fact_from_the_beginning_of_a_full_context(shared_data: Path) -> None:
    tokenizer = Tokenizer.from_file(str(demo.demo_bundle() / "tokenizer.json"))
    articles = sources.wikipedia_valid(shared_data)
    ((_, document),) = held_out_documents(tokenizer, articles, 1900, (0.1,), 1)
    (fact,) = document.asked
    with edgert.load(demo.demo_bundle()) as model:
        question = f"{document.text}\n{fact.question}"
        answer = model.chat([{"role": "user", "content": question}], temperature=0, max_tokens=30)
    assert answer.usage.prompt_tokens > 1700
    assert fact.value in answer.text


def test_hashes_of_a_folder_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGERT_CACHE", str(tmp_path / "cache"))
    for name in ("gone", "gone-not"):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "file"
        file.write_bytes(b"x")
        cache_path().parent.mkdir(exist_ok=True)
        known = json.loads(cache_path().read_text()) if cache_path().exists() else {}
        cache_path().write_text(json.dumps(known | {str(file): [0, 0, 0, 0, "ab"]}))
    HashCache().forget(tmp_path / "gone")
    assert list(json.loads(cache_path().read_text())) == [str(tmp_path / "gone-not" / "file")]
