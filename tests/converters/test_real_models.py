"""Two real, trained models: greedy text equal to its author's and to transformers', quality of
quantized bundles, and the shipped demo checkpoint against the file it was made from."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.converters.sources.gguf_to_hf import gguf_to_hf, half_split

from benchmarks.quality_text import documents, table
from edgert.bundle import Bundle
from edgert.demo import demo_checkpoint
from edgert.evaluation.verify import greedy
from edgert.session import SessionOptions, open_session
from edgert.text.tokenizer import Tokenizer

TOKENS = 200
DEVICES = ("reference", "cpu")


def bundled(checkpoint: Path, folder: Path, quant: str = "f32") -> Path:
    out = folder / f"{checkpoint.name}-{quant}.edge"
    convert(checkpoint, out, quant=quant, method="rtn", golden=False, progress=False)
    return out


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with Bundle.open(bundled(demo_checkpoint(), tmp_path_factory.mktemp("demo"))) as bundle:
        yield bundle


def answer(bundle: Bundle, device: str, prompt: tuple[int, ...]) -> tuple[int, ...]:
    session = open_session(bundle, SessionOptions(device=device, threads=1))
    try:
        return greedy(session, prompt, TOKENS)
    finally:
        session.close()


@pytest.mark.parametrize("device", DEVICES)
def test_demo_tells_the_published_story(demo: Bundle, shared_data: Path, device: str) -> None:
    published = (shared_data / "lm-stories260k" / "greedy_expected.txt").read_text("utf-8")
    ids = answer(demo, device, (1,))
    text = Tokenizer.from_bundle(demo).decode(ids)
    assert len(ids) == TOKENS
    assert len(text) > 400
    assert published.startswith(text.strip())


def test_demo_is_half_a_megabyte_and_has_no_template(demo: Bundle) -> None:
    size = sum(file.stat().st_size for file in demo_checkpoint().iterdir())
    assert size < 600_000
    assert demo.manifest.text.chat_template is None
    assert demo.manifest.text.add_bos
    assert demo.manifest.text.eos_token_ids == (2,)


def test_demo_was_made_from_the_gguf_by_the_script(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "lm-stories260k" / "stories260K.gguf"
    made = gguf_to_hf(source, tmp_path / "again", dtype="f16", context=512)
    for file in sorted(made.iterdir()):
        assert file.read_bytes() == (demo_checkpoint() / file.name).read_bytes(), file.name


def test_half_split_undoes_interleaving() -> None:
    rows = np.arange(2 * 8)[:, None] * np.ones((1, 3))
    assert half_split(rows, 2)[:, 0].tolist() == [
        0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15,
    ]  # fmt: skip


def llama2c_encode(text: str, pieces: list[str], scores: list[float]) -> list[int]:
    """llama2.c's encoder: join the neighbours whose result has the best score, leftmost first."""
    ids: list[int] = []
    known = {piece: i for i, piece in enumerate(pieces)}
    for char in (" " + text).replace(" ", "\u2581") if text else "":
        ids += [known[char]] if char in known else [b + 3 for b in char.encode("utf-8")]
    while True:
        pairs = [known.get(pieces[a] + pieces[b]) for a, b in itertools.pairwise(ids)]
        joined = [(-scores[p], at) for at, p in enumerate(pairs) if p is not None]
        if not joined:
            return ids
        at = min(joined)[1]
        ids[at : at + 2] = [pairs[at]]  # type: ignore[list-item]


def test_demo_tokenizer_splits_as_llama2c_does(demo: Bundle, shared_data: Path) -> None:
    from gguf import GGUFReader

    fields = GGUFReader(str(shared_data / "lm-stories260k" / "stories260K.gguf")).fields
    pieces = fields["tokenizer.ggml.tokens"].contents()
    scores = fields["tokenizer.ggml.scores"].contents()
    tokenizer = Tokenizer.from_bundle(demo)
    texts = documents(shared_data / "text-tinystories-sample" / "stories.jsonl.gz", 20)
    rng = np.random.default_rng(0)
    texts += [
        "",
        " ",
        "  two  spaces ",
        "naïve café — 日本語 🙂\n\ttab",
        "aaaaaaa bbbbb",
        "Ünïcode",
    ]
    texts += ["".join(rng.choice(list("aehtnosd Tl.\n"), 60)) for _ in range(60)]
    for text in texts:
        for line in text.split("\n\n"):
            assert tokenizer.encode(line) == llama2c_encode(line, pieces, scores), repr(line)


@pytest.fixture(scope="module")
def tinystories(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Iterator[Bundle]:
    folder = tmp_path_factory.mktemp("tinystories")
    with Bundle.open(bundled(shared_data / "lm-tinystories-656k", folder)) as bundle:
        yield bundle


@pytest.fixture(scope="module")
def transformers_answer(shared_data: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompt ids and transformers' greedy continuation."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    folder = shared_data / "lm-tinystories-656k"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = (1, *_library_ids(folder, "Once upon a time"))
    ids, cache, out = torch.tensor([prompt]), None, []
    with torch.no_grad():
        for _ in range(TOKENS):
            step = model(ids, past_key_values=cache, use_cache=True)
            cache, ids = step.past_key_values, step.logits[:, -1:].argmax(-1)
            out.append(int(ids))
    return prompt, tuple(out)


def _library_ids(folder: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer as Library

    library = Library.from_file(str(folder / "tokenizer.json"))
    found: list[int] = library.encode(text, add_special_tokens=False).ids
    return found


@pytest.mark.parametrize("device", DEVICES)
def test_tinystories_equals_transformers(
    tinystories: Bundle, transformers_answer: tuple[tuple[int, ...], tuple[int, ...]], device: str
) -> None:
    prompt, expected = transformers_answer
    assert Tokenizer.from_bundle(tinystories).encode("Once upon a time", bos=True) == list(prompt)
    assert answer(tinystories, device, prompt) == expected


# Perplexity of a quantized bundle over that of f32; benchmarks/QUALITY.md has measured values.
BOUNDS = {"f32": 1.0, "f16": 1.001, "int8": 1.005, "int4": 1.15}


@pytest.mark.parametrize("name", ["demo", "lm-tinystories-656k"])
def test_quality(shared_data: Path, name: str) -> None:
    checkpoint = demo_checkpoint() if name == "demo" else shared_data / name
    texts = documents(shared_data / "text-tinystories-sample" / "stories.jsonl.gz", 25)
    rows = table(checkpoint, texts, tuple(BOUNDS))
    print(json.dumps(rows, indent=1))
    assert 2.0 < rows[0]["nll"] < 3.6 if name != "demo" else 1.0 < rows[0]["nll"] < 2.0
    for row in rows:
        assert row["against_f32"] <= BOUNDS[row["quant"]], row
    assert rows[-1]["bytes"] < rows[0]["bytes"] / 2
