"""`edgert draft`: from prompts to a bundle whose own head guesses."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import edgert
from edgert.bundle import Bundle
from edgert.errors import BundleError, ConvertError, ResourceError

from ...tiny import EOS, reseal, tiny_bundle

pytest.importorskip("torch")

from edgert.converters.draft import draft, make
from edgert.converters.draft.make import DraftRequest
from edgert.converters.draft.options import TrainOptions
from edgert.converters.draft.saved import FILES, load_head

TRAIN = TrainOptions(
    tokens=2048, batch=512, micro=256, length=64, vocabulary=120, device="cpu", unrolled=3
)
ASKED: dict[str, Any] = {"train": TRAIN, "answers": 20, "answer": 24, "at_once": 8, "threads": 1}
NO_END = {"logit_bias": {EOS: -100.0}}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"messages": [
        {"role": "user", "content": f"question {i} " + "abc" * (i % 5)},
        {"role": "assistant", "content": "thrown away"},
        {"role": "user", "content": "and?"},
    ]} for i in range(12)]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    return tiny_bundle(folder / "t.edge", quant="int4", layers=3, context=256)


@pytest.fixture(scope="module")
def drafted(
    target: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("drafted") / "d.edge"
    return out, draft(target, out, DraftRequest(prompts, keep=True, **ASKED))


def test_a_bundle_gets_a_head_and_keeps_its_text(drafted: tuple[Path, Any], target: Path) -> None:
    out, report = drafted
    with Bundle.open(out, verify="full") as bundle:
        spec = bundle.manifest.draft
        assert spec is not None
        assert spec.taps == ("x1", "x2") or len(spec.taps) <= 3
        assert spec.measured == report.measured
        assert set(spec.measured) == {
            "guesses", "tau_greedy", "tau_sampled", "accepted_greedy", "accepted_sampled",
        }  # fmt: skip
        assert 1.0 <= spec.measured["tau_sampled"] <= 5.0
        assert bundle.graph("draft").weights["head"].encoding == "int4-g32"
        assert bundle.manifest.report["draft"]["loss"] == "lambda"
    assert report.told["steps"] == 4
    assert len(report.told["alpha"]) == 3
    options = {"max_tokens": 40, "temperature": 1.0, "seed": 5, **NO_END}
    with edgert.load(target, threads=1, draft="none") as model:
        plain = model.generate("one two", **options)
    with edgert.load(out, threads=1) as model:  # its own head, and the text, by themselves
        made = model.generate("one two", **options)
        assert made.text == plain.text
        fixed = edgert.DraftOptions("head", adapt=False)
        again = model.generate("one two", draft=fixed, **options)
    assert again.token_ids == plain.token_ids
    assert again.drafting is not None
    assert again.drafting.proposed > 40


def test_a_stopped_run_goes_on(
    target: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    drafted: tuple[Path, Any],
) -> None:  # fmt: skip
    """Answers that are there are not written again, and the result is the same."""
    out = tmp_path / "d.edge"
    with monkeypatch.context() as patch:
        patch.setattr(make, "train_head", _stop)
        with pytest.raises(KeyboardInterrupt):
            draft(target, out, DraftRequest(prompts, **ASKED))
    assert not out.exists()

    class Untouched:
        def __init__(self, *_: Any) -> None:
            pass

        @staticmethod
        def takes(target: Any) -> bool:
            return True

        def __call__(self, *_: Any) -> Any:
            raise AssertionError("answers were written again")

    monkeypatch.setattr(make, "OnTorch", Untouched)
    report = draft(target, out, DraftRequest(prompts, **ASKED))
    assert report.measured == drafted[1].measured
    assert not list(tmp_path.glob("*draft-work")), "the work folder is gone"


def _stop(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_an_error_says_where_the_work_stays(
    target: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    out = tmp_path / "d.edge"
    monkeypatch.setattr(make, "train_head", full)
    with pytest.raises(ResourceError) as caught:
        draft(target, out, DraftRequest(prompts, **ASKED))
    said = f"what is done stays in {out}.draft-work: the same command goes on from there"
    assert caught.value.hint.endswith(said)
    assert list(tmp_path.glob("d.edge.draft-work/*/answers-*.npz"))


def test_nothing_is_left_where_the_same_command_cannot_go_on(
    target: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little text for a head; an error before the first answers; options that do not fit."""
    out = tmp_path / "d.edge"
    few = {**ASKED, "train": replace(TRAIN, length=250, batch=500)}
    with pytest.raises(ConvertError, match=r"got .* expected 500 or more") as caught:
        draft(target, out, DraftRequest(prompts, **few | {"answers": 3}))
    assert "stays" not in caught.value.hint
    assert not list(tmp_path.iterdir())

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(make.OnTorch, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draft(target, out, DraftRequest(prompts, **ASKED))
    assert not list(tmp_path.iterdir())
    for wrong, words in (({"batch": 63}, "0 sequences of 64"), ({"vocabulary": 261}, "261 tokens")):
        train = replace(TRAIN, **wrong)
        with pytest.raises(ConvertError, match=words):  # no answer was written for it
            draft(target, out, DraftRequest(prompts, **ASKED | {"train": train}))


def test_half_of_a_file_of_answers_does_not_stay(tmp_path: Path) -> None:
    from edgert.converters.draft import answers

    def writer(prompts: Any, heat: Any, seed: int) -> Any:
        return [np.zeros(2, np.int32) for _ in prompts]

    def cut(file: Path, **_: Any) -> None:
        file.write_bytes(b"PK")
        raise OSError(28, "No space left on device")

    with mock.patch.object(np, "savez", cut), pytest.raises(OSError, match="No space"):
        answers.answered([np.ones(4, np.int32)], writer, tmp_path, batch=1, seed=0)
    assert not list(tmp_path.iterdir())


def test_the_command_takes_a_head_from_elsewhere(
    target: Path, drafted: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgert.cli import run

    out, report = drafted
    (head,) = (path.parent for path in out.parent.glob(f"d.edge.draft-work/*/{FILES[1]}"))
    again = tmp_path / "again.edge"
    asked = ["draft", str(target), "--head", str(head), "-o", str(again), "--quant", "int8"]
    assert run([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["training"] == dict(report.told)
    assert told["measured"] == {}, "nothing was held out to measure on"
    assert told["bytes"] > report.nbytes
    with Bundle.open(again) as bundle:
        assert bundle.graph("draft").weights["qkv"].encoding == "int8-g32"
    assert run(asked) == 2
    assert "expected a new name" in capsys.readouterr().err
    third = tmp_path / "third.edge"
    assert run(["draft", str(again), "--head", str(head), "-o", str(third)]) == 0, "it is replaced"


def test_a_head_from_elsewhere_removes_no_work(
    target: Path, drafted: tuple[Path, Any], tmp_path: Path
) -> None:
    """Neither the head itself, where a run of the same output kept it, nor a training that was
    stopped."""
    (made,) = (p.parent for p in drafted[0].parent.glob(f"d.edge.draft-work/*/{FILES[1]}"))
    out = tmp_path / "o.edge"
    work = tmp_path / "o.edge.draft-work"
    head, stopped = work / "key", work / "other" / "answers-0.npz"
    shutil.copytree(made, head)
    stopped.parent.mkdir()
    stopped.write_bytes(b"answers")
    before = sorted(work.rglob("*"))
    draft(target, out, DraftRequest(head=head))
    draft(out, out, DraftRequest(head=head, quant="int8", force=True))
    assert sorted(work.rglob("*")) == before


def test_what_is_read_lies_in_no_folder_that_goes(
    target: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tiny_bundle(tmp_path / "o.edge")
    for folder in (out, tmp_path / "o.edge.draft-work"):
        folder.mkdir(exist_ok=True)
        data = shutil.copy(prompts, folder / "p.jsonl")
        with pytest.raises(ConvertError, match=rf"data is {data}, which goes with {folder},"):
            draft(target, out, DraftRequest(Path(data), force=True, **ASKED))
    with pytest.raises(ConvertError, match=r"head is .*, which goes with"):
        draft(target, out, DraftRequest(head=out / "head", force=True))


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_an_output_that_is_no_bundle_is_refused_before_the_work(
    kind: str, target: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "victim"
    if kind == "link":
        out.symlink_to(target)
    elif kind == "file":
        out.write_text("x")
    else:
        out.mkdir()
        (out / "thesis.txt").write_text("x")
    monkeypatch.setattr(make, "_trained", _stop)
    with pytest.raises(ConvertError, match="expected a bundle to replace or nothing") as caught:
        draft(target, out, DraftRequest(prompts, force=True, **ASKED))
    assert (caught.value.code, "goes on" in caught.value.hint) == ("output-foreign", False)
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]


def test_an_error_leaves_no_new_folders(
    target: Path, prompts: Path, drafted: tuple[Path, Any], tmp_path: Path
) -> None:
    short = {**ASKED, "train": replace(TRAIN, batch=63)}
    for request in (DraftRequest(prompts, **short), DraftRequest(head=tmp_path)):
        with pytest.raises(ConvertError):
            draft(target, tmp_path / "no" / "such" / "d.edge", request)
        assert not list(tmp_path.iterdir())
    few = {**ASKED, "train": replace(TRAIN, length=250, batch=500), "answers": 3}
    with pytest.raises(ConvertError, match=r"got .* expected 500 or more"):
        draft(target, tmp_path / "no" / "such" / "d.edge", DraftRequest(prompts, **few))
    assert not list(tmp_path.iterdir()), "answers were written, and removed"


def test_answers_of_recurrent_models_come_from_the_runtime(prompts: Path, tmp_path: Path) -> None:
    from ...session.families import family_graph

    graph, weights = family_graph("lfm2", vocab_size=260)
    target = tiny_bundle(tmp_path / "r.edge", graph=graph, weights=weights)
    out = tmp_path / "d.edge"
    report = draft(target, out, DraftRequest(prompts, **ASKED))
    assert report.told["steps"] == 4
    with edgert.load(out, threads=1) as model:
        plain = model.generate("one two", max_tokens=20, draft="none").token_ids
        assert model.generate("one two", max_tokens=20, draft="head").token_ids == plain


# --- what is refused -----------------------------------------------------------------------------


def test_a_request_that_means_nothing(
    target: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in ({}, {"data": prompts, "head": tmp_path}, {"data": prompts, "quant": "int9"},
                  {"data": prompts, "answers": 0}):  # fmt: skip
        with pytest.raises(ConvertError) as caught:
            DraftRequest(**given)
        assert caught.value.code == "draft-options"
    from edgert.cli import run

    start = ["draft", str(target), "-o", str(tmp_path / "o.edge")]
    for more in ([], ["--data", str(prompts), "--head", str(tmp_path)]):
        assert run([*start, *more]) == 2
        assert "give either --data or --head" in capsys.readouterr().err
    for name, value in (("loss", "mse"), ("length", 5), ("rate", 0.0), ("batch", 0),
                        ("tokens", 10**30), ("batch", 10**12), ("micro", 10**12),
                        ("length", 10**12), ("seed", 10**30), ("seed", -1), ("rate", math.inf),
                        ("eta", math.inf)):  # fmt: skip
        with pytest.raises(ConvertError, match=rf"{name} is {re.escape(str(value)[:40])}|'mse'"):
            TrainOptions(**{name: value})
    with pytest.raises(ConvertError, match="device 'vacuum' is none that torch can use here"):
        draft(
            target,
            tmp_path / "o.edge",
            DraftRequest(prompts, train=replace(TRAIN, device="vacuum")),
        )
    for name in ("answers", "answer", "at_once"):
        with pytest.raises(ConvertError, match=rf"{name} is '1000000000000', expected 1 to"):
            DraftRequest(prompts, **{name: 10**12})


def test_prompts_that_are_none(target: Path, tmp_path: Path) -> None:
    for text, expected in (("", "holds nothing"), ('{"a": 1}', "no messages"), ("{", "not JSON")):
        path = tmp_path / "p.jsonl"
        path.write_text(text, "utf-8")
        with pytest.raises(ConvertError, match=expected) as caught:
            draft(target, tmp_path / "o.edge", DraftRequest(path, **ASKED))
        assert '{"messages": [{"role": "user"' in caught.value.hint, "what is wanted"
    path.write_text(json.dumps({"text": "x" * 4000}), "utf-8")
    with pytest.raises(ConvertError, match="none of 2 to 232 tokens"):
        draft(target, tmp_path / "o.edge", DraftRequest(path, **ASKED))


@pytest.mark.parametrize("harm", ["missing", "cut", "ids", "sizes", "tensor", "other"])
def test_a_damaged_head_is_refused(
    harm: str, drafted: tuple[Path, Any], target: Path, tmp_path: Path
) -> None:
    (made,) = (p.parent for p in drafted[0].parent.glob(f"d.edge.draft-work/*/{FILES[1]}"))
    head = tmp_path / "head"
    head.mkdir()
    for name in FILES:
        shutil.copyfile(made / name, head / name)
    told = json.loads((head / FILES[1]).read_text("utf-8"))
    if harm == "missing":
        (head / FILES[0]).unlink()
    elif harm == "cut":
        (head / FILES[0]).write_bytes((head / FILES[0]).read_bytes()[:-8])
    elif harm == "ids":
        told["ids"][1] = told["ids"][0]
    elif harm == "sizes":
        told["shape"]["ff"] = -4
    elif harm == "tensor":
        told["shape"]["ff"] *= 2
    else:
        told["shape"]["context"] = 128
    (head / FILES[1]).write_text(json.dumps(told), "utf-8")
    with pytest.raises(ConvertError) as caught:
        draft(target, tmp_path / "o.edge", DraftRequest(head=head))
    assert caught.value.code == "draft-saved"


def test_a_bundle_whose_head_does_not_fit_is_refused(
    drafted: tuple[Path, Any], tmp_path: Path
) -> None:
    told = json.loads((drafted[0] / "manifest.json").read_bytes())
    section = told["draft"]
    wrong = [
        section | {"taps": ["x1", "nowhere", "x2"]}, section | {"taps": []},
        section | {"taps": ["x1", "x1"]}, section | {"taps": ["logits"]},
        section | {"taps": ["x1"]}, section | {"ids": "tokenizer.json"},
    ]  # fmt: skip
    for number, changed in enumerate(wrong):
        path = tmp_path / f"{number}.edge"
        shutil.copytree(drafted[0], path)
        reseal(path, draft=changed)
        with pytest.raises(BundleError) as caught:
            Bundle.open(path)
        assert caught.value.code == "draft-head"
    for number, ids in enumerate(([5, 4], [-1, 3], [3, 400])):
        path = tmp_path / f"ids-{number}.edge"
        shutil.copytree(drafted[0], path)
        found = np.fromfile(path / section["ids"], "<i4")
        found[-2:] = ids
        found.tofile(path / section["ids"])
        reseal(path)
        with pytest.raises(BundleError, match="expected rising ones below 260"):
            edgert.load(path, threads=1)
    path = tmp_path / "none.edge"
    shutil.copytree(drafted[0], path)
    parts = {name: part for name, part in told["parts"].items() if name != "draft"}
    reseal(path, parts=parts)
    with pytest.raises(BundleError, match="section `draft` beside parts"):
        Bundle.open(path)


def test_a_saved_head_comes_back(drafted: tuple[Path, Any]) -> None:
    (made,) = (p.parent for p in drafted[0].parent.glob(f"d.edge.draft-work/*/{FILES[1]}"))
    head = load_head(made)
    assert head.told == drafted[1].told
    assert (np.diff(head.ids) > 0).all()
    assert EOS in head.ids
