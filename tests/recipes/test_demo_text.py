"""The demo model's recipe: generators, masks, data order, exact resume, and all of it with
`--tiny`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("EDGERT_SHARED_DATA", ROOT.parent / "shared" / "data"))
sys.path.insert(0, str(ROOT))

from edgert.demo import demo_bundle  # noqa: E402
from recipes.demo_text import dialogues, problems, recall, sources, stories  # noqa: E402
from recipes.demo_text.data import Cleaner, long_sentences, pack_dialogues, pack_plain  # noqa: E402
from recipes.demo_text.evaluate import _windows, bits_per_byte  # noqa: E402
from recipes.demo_text.export import export, hf_config, load_checkpoint  # noqa: E402
from recipes.demo_text.mix import Mixer, Share  # noqa: E402
from recipes.demo_text.model import TINY_MODEL, Llama, ModelConfig  # noqa: E402
from recipes.demo_text.tokenizer import (  # noqa: E402
    encode_dialogues,
    render,
    save_tokenizer,
    train_tokenizer,
)
from recipes.demo_text.train import TrainConfig, Trainer  # noqa: E402

needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"the open texts are not at {DATA}")


@pytest.fixture(scope="module")
def tokenizer():
    texts = [t for d in dialogues.everyday_dialogues(300) for _, t in d]
    return train_tokenizer(texts, vocab_size=600)


@pytest.fixture(scope="module")
def corpus(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    plain = list(stories.everyday_stories(80))
    tokens, starts = pack_plain(tokenizer, plain)
    np.save(folder / "stories.tokens.npy", tokens)
    np.save(folder / "stories.starts.npy", starts)
    np.save(folder / "validation.tokens.npy", tokens[:2000])
    tokens, mask, starts = pack_dialogues(tokenizer, dialogues.everyday_dialogues(120))
    for kind, array in (("tokens", tokens), ("mask", mask), ("starts", starts)):
        np.save(folder / f"everyday.{kind}.npy", array)
    (folder / "corpus.json").write_text(json.dumps({"validation": {"tokens": 2000, "bytes": 8000}}))
    return folder


def test_dialogues_alternate_and_end_on_an_answer():
    for dialogue in dialogues.everyday_dialogues(400):
        roles = [role for role, _ in dialogue if role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        for _, text in dialogue:
            assert text == text.strip()
            assert text
            assert not set("{}|") & set(text), text


def test_dialogues_are_seeded_and_rarely_repeat():
    first = list(dialogues.everyday_dialogues(500))
    assert first == list(dialogues.everyday_dialogues(500))
    assert len({str(d) for d in first}) > 480


def test_a_story_is_about_what_was_asked():
    rng = random.Random(0)
    for _ in range(50):
        tale = stories.make_story(rng, kind="fox", friend_kind="owl")
        assert "fox" in tale.text
        assert "owl" in tale.text
        assert "silver key" in stories.make_story(rng, thing="silver key").text


def test_problems_are_seeded_differ_and_are_answered_rightly():
    some = list(problems.problems(1400, seed=3))
    assert some == list(problems.problems(1400, seed=3))
    assert len({p.question for p in some}) == 1400
    assert {p.kind for p in some} == set(problems.KINDS)
    assert len(problems.KINDS) == 14
    for p in some:
        assert problems.is_right(p.reply, p.value, p.choices), p
        assert not set("{}|()") & set(p.question + p.reply), p
        assert 2 <= len(p.thoughts) <= 12, p


def test_the_working_of_a_problem_is_arithmetic():
    """Each sum that stands in the thoughts is true, and the last one is the answer."""
    sums = 0
    for p in problems.problems(700, seed=4):
        for a, sign, b, total in re.findall(r"(\d+) ([-+x/]) (\d+) = (\d+)", p.reply):
            made = {"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b)}
            assert int(total) == (int(a) / int(b) if sign == "/" else made[sign]), p
            sums += 1
    assert sums > 1000


@pytest.mark.parametrize(
    ("text", "value", "choices", "right"),
    [
        ("<think>\n3 + 4 = 7.\n</think>\n\nTom has 7.", "7", (), True),
        ("<think>\n3 + 4 = 7.\n</think>\n\nTom has 8.", "7", (), False),
        ("<think>\n3 + 4 = 7. So 3 + 4 = 7. So 3", "7", (), False),  # never ends
        ("It costs 1,200 dollars.", "1200", (), True),
        ("Mia is the tallest.", "Mia", ("Mia", "Tom"), True),
        ("Mia or Tom is the tallest.", "Mia", ("Mia", "Tom"), False),
        ("The order is Tom, Mia and Ben.", "Tom, Mia, Ben", ("Ben", "Mia", "Tom"), True),
        ("The order is Mia, Tom and Ben.", "Tom, Mia, Ben", ("Ben", "Mia", "Tom"), False),
        ("", "7", (), False),
    ],
)
def test_an_answer_counts_by_what_follows_the_thoughts(text, value, choices, right):
    assert problems.is_right(text, value, choices) is right


def test_training_avoids_the_held_out_problems():
    held_out = {p.question for p in problems.held_out_problems(1000)}
    asked = {d[-2][1] for d in problems.problem_dialogues(3000)}
    assert len(asked) == 3000
    assert not held_out & asked
    assert held_out & {p.question for p in problems.problems(1000, problems.SEEDS["held out"])}


def test_facts_stand_where_they_should_and_are_asked_after_the_text(tokenizer):
    texts = list(stories.everyday_stories(60))
    found = list(recall.held_out_documents(tokenizer, texts, 500, (0.1, 0.9), 10))
    assert {document.asked[0].kind for _, document in found} >= {"passkey", "colour"}
    for depth, document in found:
        (fact,) = document.asked
        place = document.text.index(fact.statement) / len(document.text)
        assert abs(place - depth) < 0.25, (depth, place)
        assert all(other.statement in document.text for other in document.others)
        ids, mask = recall.encode(tokenizer, document)
        assert 350 < len(ids) < 560
        learnt = [token for token, wanted in zip(ids, mask, strict=True) if wanted]
        shown = tokenizer.decode(learnt, skip_special_tokens=False)
        assert shown == f"{fact.answer}<|im_end|>"
        assert fact.value in fact.answer


def test_plain_recall_documents_learn_their_answers_only(tokenizer):
    texts = list(stories.everyday_stories(60))
    documents = [d for d in recall.recall_documents(tokenizer, [texts], 60) if d.plain]
    assert len(documents) > 4
    for document in documents:
        ids, mask = recall.encode(tokenizer, document)
        learnt = [token for token, wanted in zip(ids, mask, strict=True) if wanted]
        answers = "".join(f" {fact.answer}" for fact in document.asked)
        assert tokenizer.decode(learnt) == answers
        assert tokenizer.decode(ids, skip_special_tokens=False).startswith("<|endoftext|>")


def test_mask_covers_answers_and_their_end_mark(tokenizer):
    dialogue = [
        ("user", "Hi"),
        ("assistant", "Hello there!"),
        ("user", "Bye"),
        ("assistant", "Goodbye!"),
    ]
    ((ids, mask),) = encode_dialogues(tokenizer, [dialogue])
    learnt = [token for token, wanted in zip(ids, mask, strict=True) if wanted]
    shown = tokenizer.decode(learnt, skip_special_tokens=False)
    assert shown == "Hello there!<|im_end|>Goodbye!<|im_end|>"
    assert ids == tokenizer.encode(render(dialogue), add_special_tokens=False).ids


def test_template_is_the_training_text(tokenizer, tmp_path):
    jinja2 = pytest.importorskip("jinja2")
    save_tokenizer(tokenizer, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    messages = [{"role": "user", "content": "Hi"}]
    text = jinja2.Template(config["chat_template"], keep_trailing_newline=True).render(
        messages=messages, add_generation_prompt=True
    )
    assert text == render([("user", "Hi")], prompt=True)


def test_cleaner_drops_repeats_and_evaluation_sentences():
    long = "The quick brown fox jumps over the lazy dog every day."
    cleaner = Cleaner(set(long_sentences(long)))
    once = "A paragraph of some length that no evaluation text contains at all."
    assert cleaner.clean(f"Title\n{once}\nBefore. {long.upper()} After.") == f"Title\n{once}"
    assert cleaner.clean(once) == ""
    assert (cleaner.repeated, cleaner.leaked) == (1, 1)


def test_rows_follow_the_shares_and_cover_an_epoch(corpus):
    shares = (Share("stories", 0.7), Share("everyday", 0.3, text=0.0))
    mixer = Mixer(corpus, shares, rows=10, context=64, seed=0, device=torch.device("cpu"))
    assert [e - b for b, e in mixer.counts(0)] == [7, 3]
    part = mixer.parts[0]
    assert len(set(part.row_starts(0, part.rows).tolist())) == part.rows
    batch = mixer.batch(5)
    assert batch.tokens.shape == batch.targets.shape == batch.weights.shape == (10, 64)
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert batch.weights[:7].min() == 1
    assert 0 < batch.weights[7:].mean() < 1


def test_windows_score_every_token_once():
    ids = list(range(23))
    pairs = list(_windows(ids, 7))
    assert [y for _, targets in pairs for y in targets] == ids[1:]
    assert all(
        y == x + 1 for inputs, targets in pairs for x, y in zip(inputs, targets, strict=True)
    )


def _config(**changes) -> TrainConfig:
    base = TrainConfig(
        steps=8, rows=4, warmup=2, device="cpu", compile=False, log_every=2, validate_every=2.0,
        checkpoint_every=0.0, chat_share=0.25,
        pretrain=(Share("stories", 0.6), Share("everyday", 0.4)),
        chat=(Share("everyday", 0.7, text=0.0), Share("stories", 0.3)),
    )  # fmt: skip
    return replace(base, **changes)


def test_answers_weigh_what_their_share_says(corpus):
    shares = (Share("stories", 0.5), Share("everyday", 0.5, text=0.5, answer=8.0))
    batch = Mixer(corpus, shares, rows=4, context=64, seed=0, device=torch.device("cpu")).batch(0)
    assert set(batch.weights[:2].unique().tolist()) == {1.0}
    assert set(batch.weights[2:].unique().tolist()) == {0.5, 8.0}
    wrong = Mixer(
        corpus, (Share("stories", 1.0, text=0.5),), rows=2, context=64, seed=0,
        device=torch.device("cpu"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="stories has no mask"):
        wrong.batch(0)


def test_gradients_do_not_depend_on_the_rows_of_one_pass(corpus, tmp_path):
    shape = replace(TINY_MODEL, vocab=600, context=64, dropout=0.0)
    grads = []
    for micro in (None, 1):
        trainer = Trainer(shape, _config(micro=micro), corpus, tmp_path / str(micro))
        loss = trainer.forward_backward(trainer.mixer("chat").batch(0))
        grads.append((float(loss), [p.grad for p in trainer.model.parameters()]))
    assert grads[0][0] == pytest.approx(grads[1][0], rel=1e-5)
    for a, b in zip(grads[0][1], grads[1][1], strict=True):
        assert (a - b).norm() <= 1e-4 * a.norm()


@pytest.mark.parametrize("kind", ["adamw", "dash", "dash+msign"])
def test_resume_is_exact(kind, corpus, tmp_path):
    shape = replace(TINY_MODEL, vocab=600, context=64)
    whole = Trainer(shape, _config(optimizer=kind), corpus, tmp_path / "whole")
    whole.run()
    for stop in (3, 7, None):
        part = Trainer(shape, _config(optimizer=kind, stop_after=stop), corpus, tmp_path / "parts")
        part.run()
    assert part.state.chat_begin == whole.state.chat_begin == 6
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, part.model.state_dict()[name]), name


def test_training_lowers_the_loss(corpus, tmp_path):
    trainer = Trainer(
        replace(TINY_MODEL, vocab=600, context=64),
        _config(steps=60, lr=1e-2, chat_share=0.0),
        corpus,
        tmp_path,
    )
    before = trainer.validate()
    trainer.run()
    assert trainer.validate() < 0.85 * before


def test_export_agrees_with_transformers(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = Llama(
        ModelConfig(vocab=600, width=128, layers=2, heads=2, kv_heads=1, ffn=192, context=64)
    )
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    results = {"parameters": model.size, "bits_per_byte": {}, "blimp": {}, "answers": []}
    export(model, tmp_path / "tokenizer", results, tmp_path / "out")
    ours = load_checkpoint(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32
    ).eval()
    tokens = torch.randint(0, 600, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = ours(tokens), theirs(tokens).logits
    assert (a - b).norm() / b.norm() < 1e-5
    assert bits_per_byte(ours, tokenizer, ["Hello there! " * 40]) > 0


@needs_data
def test_sources_have_the_promised_shape():
    dialogue = next(sources.fairytale_questions(DATA))
    assert [role for role, _ in dialogue[:2]] == ["user", "assistant"]
    assert len(sources.wikitext2(DATA, "valid")) >= 55
    assert len(sources.novels_held_out(DATA)) == len(sources.HELD_OUT_NOVELS)


@needs_data
def test_tiny_runs_the_whole_recipe(tmp_path):
    command = [sys.executable, "-m", "recipes.demo_text.run", "--tiny"]
    command += ["--data", str(DATA), "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    out = tmp_path / "export"
    results = json.loads((tmp_path / "final" / "results.json").read_text())
    assert 0 < results["bits_per_byte"]["wikipedia_valid"] < 8
    assert len(results["answers"]) == 10
    assert "Ten fixed prompts" in (out / "README.md").read_text()
    assert load_checkpoint(out).config.vocab == TINY_MODEL.vocab
    last = json.loads((tmp_path / "final" / "log.jsonl").read_text().splitlines()[-1])
    assert last["reasoning_valid"] > 0
    assert last["recall_valid"] > 0


def test_a_trained_checkpoint_is_small_and_talks(trained_checkpoint):
    """The recipe's own torch code reads a checkpoint of its shape, and answers as its card says."""
    from recipes.demo_text.evaluate import answer
    from recipes.demo_text.tokenizer import load_tokenizer

    model, tokenizer = load_checkpoint(trained_checkpoint), load_tokenizer(trained_checkpoint)
    assert model.size == 23_602_560
    card = (trained_checkpoint / "README.md").read_text(encoding="utf-8")
    said = answer(model, tokenizer, "What colour is the sky?", limit=24)
    assert f"**What colour is the sky?**\n\n> {said}\n" in card


def test_the_recipe_writes_the_config_of_the_shipped_bundle():
    """Its SHA-256 stands in the bundle; `hf_config` is all that benchmarks need of it."""
    manifest = json.loads((demo_bundle() / "manifest.json").read_text(encoding="utf-8"))
    text = json.dumps(hf_config(ModelConfig()), indent=2) + "\n"
    found = hashlib.sha256(text.encode()).hexdigest()
    assert found == manifest["provenance"]["sources"]["config.json"]
