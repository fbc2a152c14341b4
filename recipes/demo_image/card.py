"""The model card: README.md of the exported folder, filled from the results of a run."""

from __future__ import annotations

from .evaluate import COLUMNS, SHEET

FEATURES = ("pixels", "latents")


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def model_card(results: dict, notes: dict) -> str:
    """The card; every number comes from `results` and `notes`."""
    sampling, found = results["sampling"], results["retrieval"]
    size = {name: f"{count / 1e6:.1f}M" for name, count in results["parameters"].items()}
    scenes = [
        (name, s["pictures"], _percent(s["objects"]), _percent(s["nothing else"]),
         _percent(s["relations given objects"]), _percent(s["right"]),
         _percent(results["ceiling"][name]))
        for name, s in results["scenes"].items()
    ]  # fmt: skip
    head = ("scenes", "pictures", "objects", "and no other", "relations given objects", "right",
            "right after autoencoder alone")  # fmt: skip
    curve = [
        (x["step"], x["rows"], x["valid_single"], x["valid_emoji"], x["valid_shapes"])
        for x in notes.get("curve", [])
    ]
    tuning = [
        (t["guidance"], t["shift"], _percent(t["emoji"]), _percent(t["shapes"]),
         _percent(t["retrieval"]))
        for t in results["tuning"]
    ]  # fmt: skip
    steps = [
        (s["steps"], *(_percent(s["retrieval"][f"top 5 by {kind}"]) for kind in FEATURES),
         *(_percent(s[name]) for name in s if name not in ("steps", "retrieval")))
        for s in notes.get("steps", [])
    ]  # fmt: skip
    lines = ["; ".join(SHEET[i : i + COLUMNS]) for i in range(0, len(SHEET), COLUMNS)]
    return CARD.format(
        denoiser=size["denoiser"], text=size["text encoder"], **sampling,
        retrieval=_table(("retrieval", "share"), [
            (name, _percent(value) if isinstance(value, float) else value)
            for name, value in found.items()]),
        scenes=_table(head, scenes),
        tuning=_table(("guidance", "shift", "emoji right", "shapes right", "retrieval"), tuning),
        fewer=_steps_section(notes.get("steps", []), steps),
        remarks=notes.get("remarks", ""),
        run=_table(("of the run", "value"), list(notes.get("run", {}).items())),
        curve=_table(("step", "pictures seen", "single", "emoji scenes", "shapes"), curve),
        sheet="\n".join(f"{i + 1}. {line}" for i, line in enumerate(lines)),
    )  # fmt: skip


def _steps_section(found: list[dict], rows: list[tuple[object, ...]]) -> str:
    """The table of fewer steps, if there is one."""
    if not found:
        return ""
    names = [name for name in found[0] if name not in ("steps", "retrieval")]
    head = ("Euler steps", *(f"top 5 by {kind}" for kind in FEATURES), *names)
    return f"Fewer steps, with the same guidance and shift:\n\n{_table(head, rows)}\n"


CARD = """---
language: en
license: other
license_name: apache-2.0-and-mit
library_name: diffusers
pipeline_tag: text-to-image
---

# edgert's demo picture model

Draws emoji-like pictures of 128 x 128 from short English captions: {denoiser} parameters in the
denoiser, {text} in the caption encoder, trained together from random weights by
`recipes/demo_image`. A flow transformer (diffusers' PixArtTransformer2DModel) over the latents of
TAEF2 (32 x 16 x 16, one token each), a caption encoder of T5's form, byte-level BPE, lower case.

## Use

Captions like those of training: "a red apple, 3d style", "a cat left of a house, flat style", "a
robot on a pink background", "a red square above a blue ring". Without a style it picks one.
Advised: {steps} Euler steps, guidance {guidance}, shift {shift}; the empty caption is the
unconditional one. Latents: z = (latent - shift_factor) * scaling_factor (`vae/config.json`); the
time input is 1000 sigma.

## Figures

Weights rounded to bfloat16, as stored; sampled once per caption with the setting above, in torch.

{retrieval}

Retrieval: pictures of the two sets drawn from name and style; a drawing and every picture of both
sets are cut to their content and scaled, and the drawing is right when its own picture is among the
nearest by mean squared difference (pixels at 32 x 32; latents at 64 x 64). These are pictures that
were trained on: it measures what was learned by heart.

{scenes}

Scenes: captions of held-out seeds, judged by the recipe's detectors. "Objects": each named one is
there exactly once. "Unseen pairs": no training scene shows the two together. Coloured shapes are
told by colour and outline, emoji by the nearest sprite of either style. The last column is what
the detector makes of the true picture after the autoencoder.

{fewer}
{tuning}

Tuning of guidance and shift, on other captions than those above (scenes of two objects, top 5 by
pixels).

## Sheet

`sheet.png`, first seed, nothing chosen. Rows:

{sheet}

## Training

{run}

Held-out loss of the averaged weights (velocity, mean squared error): single pictures at new places,
scenes of new seeds.

{curve}

## Data

| part | origin | licence |
| --- | --- | --- |
| flat pictures | Noto emoji (googlefonts/noto-emoji), 64 x 64 enlarged | Apache-2.0 |
| 3d pictures | Fluent emoji (microsoft/fluentui-emoji) | MIT |
| keywords | emojilib (muan/emojilib) | MIT |
| autoencoder | TAEF2 (madebyollin/taesd) | MIT |
| scenes | generated by the recipe from those pictures | as the pictures |

## Limits

It knows the pictures of two emoji sets and little else: a caption of something else gives a guess
from words it knows, or mush. Relations are those of the recipe's sentences (left of, right of,
above, below; two or three objects out of 60 subjects, or coloured shapes). It knows no numbers of
things, no text, no photographs and no other language than English.
{remarks}"""
