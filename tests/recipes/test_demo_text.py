"""The demo model's recipe: generators, masks, data order, exact resume, and all of it with
`--tiny`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
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
from recipes.demo_text import dialogues, sources, stories  # noqa: E402
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
    shares = (Share("stories", 0.7), Share("everyday", 0.3, answers_only=True))
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
        chat=(Share("everyday", 0.7, answers_only=True), Share("stories", 0.3)),
    )  # fmt: skip
    return replace(base, **changes)


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
