"""Bits per byte and BLiMP accuracy in plain torch, batched.

Definitions. Bits per byte: every document is scored on its own, after <|endoftext|>, in windows
of `context` tokens that do not overlap (lm-eval's rolling log-likelihood), summed and divided by
ln 2 and by the UTF-8 bytes of the documents. BLiMP: a pair counts when the good sentence, after
<|endoftext|>, has the higher summed log-probability; ties count as wrong.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from . import sources
from .data import evaluation_texts
from .model import Llama
from .tokenizer import END_OF_TEXT, IM_END, render

WINDOWS_PER_BATCH = 32
TOKENS_PER_BATCH = 32_768

PROMPTS = (
    "Hello! How are you?",
    "Who are you?",
    "Tell me a short story about a fox.",
    "What colour is the sky?",
    "I am sad today.",
    "Tom has 5 apples. He buys 7 more and gives 4 to Anna. How many apples does Tom have?",
    "Mia is taller than Tom. Ben is shorter than Tom. Who is the shortest?",
    "Ada's umbrella is yellow. Hugo hid the coin in the barn. The pass key is 48213. "
    "What colour is Ada's umbrella?",
    "A train leaves at 3 and arrives at 7. How long does it travel?",
    "Why do we sleep?",
)


def _windows(ids: list[int], context: int) -> Iterator[tuple[list[int], list[int]]]:
    """Inputs and targets of at most `context` tokens that together score ids[1:] once."""
    for begin in range(0, len(ids) - 1, context):
        yield (
            ids[begin : begin + context][: len(ids) - 1 - begin],
            ids[begin + 1 : begin + context + 1],
        )


def _score(model: Llama, pairs: list[tuple[list[int], list[int]]]) -> Tensor:
    """Summed log-probability (nats, float64 [n]) of the targets of each (inputs, targets) pair."""
    device = model.embed.weight.device
    longest = max(len(x) for x, _ in pairs)
    x = torch.zeros(len(pairs), longest, dtype=torch.long)
    y = torch.full((len(pairs), longest), -100, dtype=torch.long)
    for i, (inputs, targets) in enumerate(pairs):
        x[i, : len(inputs)] = torch.tensor(inputs)
        y[i, : len(targets)] = torch.tensor(targets)
    logits = model(x.to(device)).float()
    nats = F.cross_entropy(logits.flatten(0, 1), y.to(device).flatten(), reduction="none")
    return -nats.view(x.shape).double().sum(1).cpu()


@torch.no_grad()
def bits_per_byte(model: Llama, tokenizer: Tokenizer, documents: list[str]) -> float:
    """See the module's definition."""
    model.eval()
    mark = tokenizer.token_to_id(END_OF_TEXT)
    encodings = tokenizer.encode_batch_fast(documents, add_special_tokens=False)
    pairs = [w for e in encodings for w in _windows([mark, *e.ids], model.config.context)]
    pairs.sort(key=lambda pair: len(pair[0]))
    nats = sum(
        float(-_score(model, pairs[i : i + WINDOWS_PER_BATCH]).sum())
        for i in range(0, len(pairs), WINDOWS_PER_BATCH)
    )
    return nats / math.log(2) / sum(len(d.encode()) for d in documents)


@torch.no_grad()
def blimp(model: Llama, tokenizer: Tokenizer, data: Path, *, every: int = 1) -> dict[str, float]:
    """Accuracy over all pairs ("accuracy") and per field, taking each `every`-th pair."""
    model.eval()
    pairs = sources.read_jsonl(data / "bench-blimp" / "blimp.jsonl.xz")[::every]
    mark = tokenizer.token_to_id(END_OF_TEXT)
    sentences = [pair[key] for pair in pairs for key in ("sentence_good", "sentence_bad")]
    ids = [[mark, *e.ids] for e in tokenizer.encode_batch_fast(sentences, add_special_tokens=False)]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    scores = torch.zeros(len(ids), dtype=torch.double)
    for batch in _by_tokens(order, ids):
        scores[batch] = _score(model, [(ids[i][:-1], ids[i][1:]) for i in batch])
    right = (scores[0::2] > scores[1::2]).tolist()
    fields: dict[str, list[bool]] = defaultdict(list)
    for pair, hit in zip(pairs, right, strict=True):
        fields[pair["field"].replace("/", "_")].append(hit)
    result = {"accuracy": sum(right) / len(right)}
    return result | {name: sum(hits) / len(hits) for name, hits in sorted(fields.items())}


def _by_tokens(order: list[int], ids: list[list[int]]) -> Iterator[list[int]]:
    """Cut `order` (short sentences first) into batches of about TOKENS_PER_BATCH tokens."""
    batch: list[int] = []
    for i in order:
        batch.append(i)
        if len(batch) * len(ids[i]) >= TOKENS_PER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


@torch.no_grad()
def answer(model: Llama, tokenizer: Tokenizer, prompt: str, *, limit: int = 320) -> str:
    """The greedy answer to one user turn; plain torch without a cache, float32."""
    model.eval()
    device = model.embed.weight.device
    stops = {tokenizer.token_to_id(IM_END), tokenizer.token_to_id(END_OF_TEXT)}
    ids = tokenizer.encode(render([("user", prompt)], prompt=True), add_special_tokens=False).ids
    begin = len(ids)
    limit = min(limit, model.config.context - begin)
    for _ in range(limit):
        token = int(model(torch.tensor([ids], device=device))[0, -1].argmax())
        if token in stops:
            break
        ids.append(token)
    return tokenizer.decode(ids[begin:], skip_special_tokens=False)


def evaluate(
    model: Llama,
    tokenizer: Tokenizer,
    data: Path,
    out: Path,
    *,
    documents: int | None = None,
    characters: int | None = None,
    every: int = 1,
) -> dict:
    """All figures and the greedy answers, also written to `out`/results.json.

    documents, characters: only so many of each text, and of each document. Weights are rounded to
    bfloat16 first, as they ship; the arithmetic is float32.
    """
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(torch.bfloat16))
    texts = evaluation_texts(data)
    results: dict = {
        "parameters": model.size,
        "bits_per_byte": {
            name: round(
                bits_per_byte(model, tokenizer, [d[:characters] for d in docs[:documents]]), 4
            )
            for name, docs in texts.items()
        },
        "blimp": {
            name: round(v, 4) for name, v in blimp(model, tokenizer, data, every=every).items()
        },
        "answers": [{"prompt": p, "answer": answer(model, tokenizer, p)} for p in PROMPTS],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return results
