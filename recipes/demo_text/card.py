"""The model card: README.md of the exported checkpoint, filled from the results of a run."""

from __future__ import annotations

from .model import ModelConfig
from .sources import HELD_OUT_NOVELS, LICENCES


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def model_card(config: ModelConfig, results: dict, notes: dict) -> str:
    """README.md of the checkpoint; every number comes from `results` and `notes`."""
    c = config
    bits = _table(
        ("text", "bits per byte"),
        [(name, f"{v:.4f}") for name, v in results["bits_per_byte"].items()],
    )
    blimp = _table(
        ("BLiMP", "accuracy"),
        [
            ("all" if name == "accuracy" else name, f"{100 * v:.2f} %")
            for name, v in results["blimp"].items()
        ],
    )
    licences = _table(
        ("part", "origin", "licence"), [(x.name, x.origin, x.licence) for x in LICENCES]
    )
    run = _table(("of the run", "value"), list(notes.get("run", {}).items()))
    curve = _table(
        ("step", "seconds", "tokens", "valid bits per byte"),
        [
            (x["step"], x["seconds"], x["tokens"], f"{x['valid_bpb']:.4f}")
            for x in notes.get("curve", [])
        ],
    )
    paired = _table(
        ("paired run", "steps", "tokens", "seconds", "valid bits per byte"),
        [
            (name, x["step"], x["tokens"], x["seconds"], f"{x['valid_bpb']:.4f}")
            for name, x in notes.get("paired", [])
        ],
    )
    answers = "\n\n".join(
        f"**{x['prompt']}**\n\n> " + x["answer"].replace("\n", "\n> ") for x in results["answers"]
    )
    return CARD.format(
        parameters=f"{results['parameters'] / 1e6:.1f}M",
        layers=c.layers, width=c.width, heads=c.heads, kv=c.kv_heads, ffn=c.ffn, vocab=c.vocab,
        context=c.context, bits=bits, blimp=blimp, licences=licences, run=run, curve=curve,
        paired=paired, answers=answers, held_out=", ".join(HELD_OUT_NOVELS),
    )  # fmt: skip


CARD = """---
language: en
license: cc-by-sa-4.0
library_name: transformers
pipeline_tag: text-generation
---

# edgert's demo model

A chat model of {parameters} parameters, trained from open texts by `recipes/demo_text`. It
greets, answers simple everyday questions and tells short stories. Llama layout: {layers} layers,
width {width}, {heads} query and {kv} key/value heads of 64, feed-forward {ffn}, tied embeddings,
byte-level BPE of {vocab} tokens, context {context}.

## Use

Chat turns follow a ChatML-like template (in `tokenizer_config.json`): `<|im_start|>role`, line
break, text, `<|im_end|>`. Plain text was trained after `<|endoftext|>` (the BOS token; the
tokenizer does not add it). Sampled by default, at temperature 0.7 and top-p 0.9
(`generation_config.json`): greedy plain text soon repeats itself, greedy stories have one plot.

## Figures

From the recipe's own evaluation in torch, at the end of training. Weights in bfloat16 as shipped,
arithmetic in float32. Bits per byte: per document, after `<|endoftext|>`, non-overlapping windows
of {context} tokens, divided by UTF-8 bytes. BLiMP: summed log-probability after `<|endoftext|>`,
all 67 paradigms, ties wrong.

{bits}

{blimp}

## Figures through transformers and edgert

The texts as above, but novels in pieces of 16 kB. BLiMP and the other tasks by lm-eval's
definitions, which put a space before each sentence, so that BLiMP differs a little from the figure
above. ± is one standard error. edgert f32 holds the bfloat16 weights exactly; int4 is the bundle in
the edgert package (int4 matrices, int8 embedding, 8-bit activations).

<!-- quality: begin -->
Not measured for this checkpoint.
<!-- quality: end -->

## Training

{run}

The optimizer was chosen by short runs of equal training time, same data, same schedule to zero,
no chat tuning. MSign (period 100, attention) sets the model back each time it acts; the log shows
it.

{paired}

Running bits per byte on the first 64 rows of the Wikipedia validation text (bf16, rows of
{context} tokens without regard to documents, so not the same figure as above). All logs are JSON
lines in `recipes/demo_text/curves/`.

{curve}

## Data

{licences}

Paragraphs that repeat, or that share a sentence of eight words or more with an evaluation text
(Wikipedia and WikiText-2 validation and test, held-out novels), were dropped. The novels
{held_out} were held out. No benchmark data was trained on.

The texts are under the licences above; Wikipedia and the Schema-Guided dialogues ask for
attribution and share alike, so the weights are offered under CC BY-SA 4.0. Titles and authors of
the picture books are in the source repositories.

## Limits

The model is small. It knows few facts and states wrong ones with the same confidence; arithmetic
beyond small numbers fails; questions outside the generator's topics often get an answer to
another question. Stories are simple, and greedy ones mostly follow one of the ten plots of the
recipe's own generator: sample for variety. It speaks English only. Old novels and encyclopedia
articles carry the views of their time and authors, and nothing was done to remove them. It has
had no safety tuning: do not put it before the public, and do not use it for advice of any kind.

## Ten fixed prompts, greedy, unedited

From the bfloat16 weights, arithmetic in float32 (this recipe's torch code; transformers answers the
same):

{answers}

## The same prompts, answered by the int4 bundle through edgert, greedy, unedited

<!-- int4 answers: begin -->
Not measured for this checkpoint.
<!-- int4 answers: end -->
"""
