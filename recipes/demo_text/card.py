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
    licences = _table(
        ("part", "origin", "licence"), [(x.name, x.origin, x.licence) for x in LICENCES]
    )
    run = _table(("of the run", "value"), list(notes.get("run", {}).items()))
    curve = _table(
        ("step", "tokens", "valid bits per byte", "problems", "facts"),
        [
            (x["step"], x["tokens"], f"{x['valid_bpb']:.4f}",
             x.get("reasoning_valid", "–"), x.get("recall_valid", "–"))
            for x in notes.get("curve", [])
        ],
    )  # fmt: skip
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
        context=c.context, theta=f"{c.rope_theta:,.0f}", figures=_figures(results),
        licences=licences, run=run, curve=curve, paired=paired, answers=answers,
        held_out=", ".join(HELD_OUT_NOVELS),
    )  # fmt: skip


def _figures(results: dict) -> str:
    """The recipe's own figures; `benchmarks.quality_demo --write` puts measured tables here."""
    rows = [(f"{name}, bits per byte", f"{v:.4f}") for name, v in results["bits_per_byte"].items()]
    rows += [
        ("BLiMP" if name == "accuracy" else f"BLiMP, {name}", f"{100 * v:.2f} %")
        for name, v in results["blimp"].items()
    ]
    note = "From the recipe's evaluation in torch; not measured through edgert yet."
    return f"{note}\n\n{_table(('measure', 'found'), rows)}"


CARD = """---
language: en
license: cc-by-sa-4.0
library_name: transformers
pipeline_tag: text-generation
---

# edgert's demo model

A chat model of {parameters} parameters, trained from random weights on open texts by
`recipes/demo_text`. It chats in short sentences, tells simple stories, thinks before it answers
word problems, and finds a fact that was stated anywhere in its context. Llama layout: {layers}
layers, width {width}, {heads} query and {kv} key/value heads of 64, feed-forward {ffn}, tied
embeddings, byte-level BPE of {vocab} tokens, context {context}, rope theta {theta}.

## Use

Chat turns follow a ChatML-like template (in `tokenizer_config.json`): `<|im_start|>role`, line
break, text, `<|im_end|>`. Where it thinks, an answer opens with `<think>`, a line break and short
sentences, and goes on after `</think>` and an empty line. Plain text was trained after
`<|endoftext|>` (the BOS token; the tokenizer does not add it). Sampled by default, at temperature
0.7 and top-p 0.9 (`generation_config.json`): greedy plain text soon repeats itself. Word problems
and facts are answered best greedily (`--temp 0`).

## Figures

Word problems: held-out ones of the recipe's generator, fourteen kinds, two to five steps. Without
thinking: the thoughts are opened and closed with nothing in between, and the first sentence that
follows counts. Facts: a pass key, a colour, a name, a place or a number, stated once among the
sentences of Wikipedia articles that training did not see (within a tenth of each of five depths)
and asked for at the end; the wording is that of training. Answers are greedy, one turn each, no
system message; in brackets, how many. Bits per byte: each document after `<|endoftext|>`, in
windows of 1,024 tokens that do not overlap. BLiMP and the tasks by lm-eval's definitions; ± is one
standard error. f32 holds the stored bfloat16 weights exactly; int4 is the bundle in the edgert
package: int4-g32 matrices, an int8-g32 embedding that is also the head, activations of 8 bits.

<!-- quality: begin -->
{figures}
<!-- quality: end -->

## Training

{run}

Plain text was read in rows of {context} tokens without regard to documents. Tokens of problems and
recall documents outside of answers weigh half in pre-training and nothing in tuning; recall answers
weigh eight times in pre-training and four times in tuning.

{curve}

Held-out figures of the run: bits per byte on the first rows of the Wikipedia validation text (bf16,
without regard to documents, so not the figure above), and nats per answer token of word problems
and of recall documents. The recall rows cut documents, so that some facts are asked for and not
shown. The lines stand in `recipes/demo_text/curves/final.jsonl`.

The optimizer was chosen by short runs of equal training time on an earlier model of this shape
(context 1,024, no problems and no recall documents), same data, same schedule to zero, no tuning.
MSign (period 100, attention) sets the model back each time it acts; the log shows it.

{paired}

## Data

{licences}

Paragraphs that repeat, or that share a sentence of eight words or more with an evaluation text
(Wikipedia and WikiText-2 validation and test, held-out novels), were dropped. The novels
{held_out} were held out. No test data was trained on; GSM8K's training part was.

The texts are under the licences above; Wikipedia and the Schema-Guided dialogues ask for
attribution and share alike, so the weights are offered under CC BY-SA 4.0. Titles and authors of
the picture books are in the source repositories.

## Limits

The model is small. It knows few facts and states wrong ones with the same confidence.

- **Word problems** are solved in the generator's fourteen kinds and little beyond: elsewhere the
  thoughts have the right form and mostly wrong content, and few problems of GSM8K come out right.
  Counting the things in a long list is the weakest of the fourteen.
  Some repeat one clause until the token limit: set one.
- **Without its thoughts** it cannot reckon: the table shows what is left of its answers.
- **Facts** are found when they stand in running text, in the wording of the training documents. A
  bare list of facts in one short message is mistaken for a word problem, as one of the answers
  below shows; facts in other words were not measured.
- **Chat**: questions outside the generator's topics often get an answer to another question.
  Stories are simple, and greedy ones mostly follow one plot: sample for variety.

It speaks English only. Old novels and encyclopedia articles carry the views of their time and
authors, and nothing was done to remove them. It has had no safety tuning: do not put it before the
public, and do not use it for advice of any kind.

## Ten fixed prompts, greedy, unedited

From the bfloat16 weights, arithmetic in float32 (this recipe's torch code):

{answers}

## The same prompts, answered by the int4 bundle through edgert, greedy, unedited

<!-- int4 answers: begin -->
Not measured for this checkpoint.
<!-- int4 answers: end -->
"""
