"""Train a draft head for `lm-edgert-60m` twice on one GPU, by the clock, and measure both.

    python -m recipes.draft_head.train --model DIR --work draft_head_work --deadline 690

Stages: the model's answers to the prepared prompts; a head trained with KL; the same first weights,
data and steps with LK-lambda; tokens a step of both at gamma 2, 4, 7 and temperatures 0, 0.7, 1, on
the same held prompts. Stopped and started again with the same options it goes on where it was.
`head-kl/` and `head-lambda/` hold the heads, `table.md` what was measured.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgert.converters.draft.answers import OnTorch, answered, split
from edgert.converters.draft.head import Head
from edgert.converters.draft.measure import Writing, Written, ratio
from edgert.converters.draft.options import MARK, TrainedHead, TrainOptions
from edgert.converters.draft.saved import FILES, load_head, save_head
from edgert.converters.draft.target import Target
from edgert.converters.draft.training import train_head
from edgert.converters.heal.ranks import local_device
from edgert.kernels.encodings import dequantize, quantize

from recipes.linear_text.checkpoint import load

from .prepare import HELD

LOSSES = {"kl": "KL", "lambda": "LK-lambda"}
GAMMAS, TEMPERATURES = (2, 4, 7), (0.0, 0.7, 1.0)
ENDS = [0, 2]  # <|endoftext|>, <|im_end|>
PAPER = (
    "The paper (arXiv 2602.23881), EAGLE-3 at gamma 7, mean of three sets, KL to LK-lambda: "
    "Llama-3.1-8B 4.36 to 4.43 (+1.6 %) at temperature 0, 3.86 to 4.01 (+3.9 %) at 1; "
    "gpt-oss-120b +1.8 % and +7.7 %; Qwen3-235B +1.8 % and +8.2 %."
)  # fmt: skip


def rounded(weights: dict[str, Any]) -> dict[str, Any]:
    """Weights as the bundle of the usual quantization has them: int4, tables and head int8."""
    found = {}
    for name, array in weights.items():
        kind = "f32" if array.ndim < 2 else "int8-g32" if name == "embed" else "int4-g32"
        found[name] = dequantize(quantize(np.asarray(array, np.float32), kind))
    return found


class Run:
    """One run by the clock."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.start = asked, time.perf_counter()
        self.device = local_device(asked.device)
        asked.work.mkdir(parents=True, exist_ok=True)
        model, weights = load(asked.model)
        self.graph, self.weights = model.graph, weights if asked.exact else rounded(weights)
        half = torch.device(self.device).type == "cuda"
        if half:
            torch.set_float32_matmul_precision("high")
        self.target = Target(self.graph, self.weights, self.device, half=half)
        found = np.load(asked.work / "prompts.npz")
        self.prompts = split(found["train"], found["train_sizes"])[: asked.prompts]
        held = split(found["held"], found["held_sizes"])
        kinds = found["held_kinds"].tolist()
        some = [i for i in range(len(held)) if kinds[:i].count(kinds[i]) < asked.held]
        self.held = [held[i] for i in some]
        self.kinds = np.asarray([kinds[i] for i in some])

    def all(self) -> None:
        """All stages."""
        ids, losses = self.answers(), self.asked.losses
        heads: dict[str, TrainedHead] = {}
        for loss in losses:
            before = heads.get(losses[0])
            heads[loss] = self.head(loss, ids, before)
        rows = [self.row(gamma, heat, heads) for heat in TEMPERATURES for gamma in GAMMAS]
        told = {loss: dict(head.told) for loss, head in heads.items()}
        text = table(rows, told, len(self.held))
        (self.asked.work / "table.md").write_text(text, "utf-8")
        (self.asked.work / "rows.json").write_text(
            json.dumps({"heads": told, "rows": rows}), "utf-8"
        )
        print(text, flush=True)
        self.say(done=True)

    def say(self, **values: Any) -> None:
        """Print a JSON line, and keep it in `log.jsonl`."""
        line = json.dumps({"seconds": round(time.perf_counter() - self.start, 1), **values})
        with (self.asked.work / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def answers(self) -> np.ndarray:
        """What is trained on, int32 ids; kept in `answers.npy`."""
        asked, kept = self.asked, self.asked.work / "answers.npy"
        if kept.exists():
            return np.load(kept)
        size, start = asked.prompts_at_once, time.perf_counter()
        writer = OnTorch(self.target, size, max(map(len, self.prompts)), asked.answer, ENDS)
        ids = answered(
            self.prompts, writer, asked.work / "answers", batch=size, seed=asked.seed,
            seconds=asked.shares[0] * asked.deadline,
        )  # fmt: skip
        aside = kept.with_suffix(".new.npy")
        np.save(aside, ids)
        aside.replace(kept)
        seconds = round(time.perf_counter() - start, 1)
        self.say(answers=len(ids), written=int((ids >= MARK).sum()), answers_seconds=seconds)
        return ids

    def head(self, loss: Any, ids: np.ndarray, before: TrainedHead | None) -> TrainedHead:
        """A trained head; the second one for as many tokens as the first."""
        asked, folder = self.asked, self.asked.work / f"head-{loss}"
        if (folder / FILES[1]).exists():
            return load_head(folder)
        seconds = asked.shares[1] * asked.deadline
        options = TrainOptions(
            loss, tokens=asked.tokens if before is None else int(before.told["tokens"]),
            seconds=seconds if before is None else math.inf, batch=asked.batch, micro=asked.micro,
            length=asked.length, rate=asked.rate, vocabulary=asked.vocabulary, seed=asked.seed,
            device=asked.device,
        )  # fmt: skip
        made = train_head(
            self.graph, self.weights, ids, options, always=[0, 1, 2], progress=True,
            folder=asked.work / f"state-{loss}", target=self.target,
        )  # fmt: skip
        save_head(made, folder)
        self.say(trained=loss, **made.told)
        return made

    def row(self, gamma: int, heat: float, heads: dict[str, TrainedHead]) -> dict[str, Any]:
        """A line of the table: all heads on the same prompts."""
        kept = self.asked.work / f"row-{gamma}-{heat}.json"
        if kept.exists():
            found: dict[str, Any] = json.loads(kept.read_text("utf-8"))
            return found
        written = {loss: self.written(head, gamma, heat) for loss, head in heads.items()}
        row: dict[str, Any] = {"gamma": gamma, "temperature": heat}
        for loss, one in written.items():
            row[loss] = [round(x, 4) for x in (one.tau, *one.interval())]
            row[f"{loss}_kinds"] = self.by_kind(one)
        if len(written) == 2:
            first, second = written.values()
            row["ratio"] = [round(x, 4) for x in ratio(second, first)]
            if heat == 0:
                pairs = zip(first.texts, second.texts, strict=True)
                row["same"] = float(np.mean([np.array_equal(*pair) for pair in pairs]))
        kept.write_text(json.dumps(row), "utf-8")
        self.say(**row)
        return row

    def by_kind(self, one: Written) -> dict[str, float]:
        """tau of each kind of prompt."""
        found = {}
        for kind, name in enumerate(HELD):
            mine = self.kinds == kind
            if mine.any():
                found[name] = round(float(one.tokens[mine].sum() / one.cycles[mine].sum()), 3)
        return found

    def written(self, head: TrainedHead, gamma: int, heat: float) -> Written:
        held = {n: torch.from_numpy(a).to(self.device) for n, a in head.weights.items()}
        ids = torch.from_numpy(head.ids).long().to(self.device)
        return Writing(
            self.target, Head(head.shape, held), ids, self.held, count=self.asked.measured,
            gamma=gamma, temperature=heat, ends=ENDS, seed=self.asked.seed,
        ).run()  # fmt: skip


def table(rows: list[dict[str, Any]], told: dict[str, Any], prompts: int) -> str:
    """Markdown: what was found beside the paper's claim."""
    columns = {loss: f"tau {LOSSES[loss]} (95 %)" for loss in told}
    columns |= {"ratio": "ratio (95 %)"} if len(told) == 2 else {}
    head = ["T", "gamma", *columns.values()]
    lines = [head, ["---:"] * len(head)]
    for row in rows:
        cells = [f"{row['temperature']:g}", str(row["gamma"])]
        lines.append(cells + ["{:.3f} ({:.3f} to {:.3f})".format(*row[name]) for name in columns])
    made = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = [
        f"{loss}: {t['steps']} steps, {t['tokens']:,} tokens, {t['seconds']:.0f} s; alpha by place "
        f"{t.get('alpha')}, at most {t.get('most')}, KL {t.get('kl')}"
        for loss, t in told.items()
    ]
    return "\n\n".join([
        f"Tokens a step (tau), {prompts} held prompts, guesses checked by rejection; intervals by "
        "bootstrap over prompts.",
        made, *notes, PAPER,
    ]) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("draft_head_work"))
    parser.add_argument("--deadline", type=float, default=690.0, help="seconds of all stages")
    parser.add_argument("--losses", nargs="+", choices=[*LOSSES], default=[*LOSSES])
    parser.add_argument(
        "--shares", type=float, nargs=2, default=(0.17, 0.34), metavar=("ANSWERS", "TRAINING"),
        help="of the deadline for answers and for one training; the rest measures",
    )  # fmt: skip
    parser.add_argument("--tokens", type=int, default=1_000_000_000, help="of a training, at most")
    parser.add_argument("--prompts", type=int, default=1_000_000, help="answered at most")
    parser.add_argument("--prompts-at-once", type=int, default=1024)
    parser.add_argument("--answer", type=int, default=224, help="tokens of an answer at most")
    parser.add_argument("--batch", type=int, default=32768, help="tokens of a step")
    parser.add_argument("--micro", type=int, default=16384, help="tokens at a time")
    parser.add_argument("--length", type=int, default=512, help="of a sequence, tokens")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--held", type=int, default=48, help="prompts of a kind, to measure on")
    parser.add_argument("--measured", type=int, default=96, help="tokens of an answer measured")
    parser.add_argument("--exact", action="store_true", help="weights as trained, not as int4")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device", default=None)
    Run(parser.parse_args()).all()


if __name__ == "__main__":
    main()
