"""A plan as a person reads it: Markdown, and a picture of what can be had."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ..errors import printable
from ..storage.aside import write_output
from .cards import Workload
from .decide import Option, Plan
from .drawings import Sketch

ROWS = 12


def markdown(plan: Plan) -> str:
    """The plan as a page."""
    lines = [f"# A plan for {printable(plan.device)}", ""]
    load = plan.workload
    budgets = [
        f"{name} {value:g} s"
        for name, value in (
            ("first token", load.ttft_budget_s), ("each token", load.tok_budget_s),
            ("in all", load.total_budget_s),
        )
        if value is not None
    ]  # fmt: skip
    lines += [f"{_asked(load)}; {', '.join(budgets) or 'no time limits'}.", ""]
    if plan.choice is None:
        lines += ["**Nothing keeps the limits.** The nearest:", ""]
        lines += [f"- {r.label}: {r.share:.2f} of {r.binding}" for r in plan.refused]
        return "\n".join(lines) + "\n"
    one = plan.choice
    lines += [
        f"**{one.label}**: {_said(one)}", "",
        f"{plan.feasible} of {plan.considered} candidates keep the limits. What holds back: "
        f"{plan.binding}. 10 % more of a resource adds to the score: "
        + ", ".join(f"{name} {value:.4f}" for name, value in plan.prices.items()) + ".", "",
        "## What can be had", "", *table(_some(plan.pareto)), "",
    ]  # fmt: skip
    if plan.measure:
        lines += ["## What to measure next", ""]
        lines += [f"- {n.label}: expected gain {n.gain:.4f}" for n in plan.measure]
        lines.append("")
    lines += [
        "## Where the numbers are from", "",
        f"Device: {plan.provenance['device']} (deviation {plan.provenance['spread']:.0%}). "
        f"{_sources(plan)} {one.quality.source} for the choice; laws and constants stand in the "
        "JSON form.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _asked(load: Workload) -> str:
    """What is asked, in words."""
    if load.kind == "image":
        size = f"{load.width} x {load.height}" if load.width and load.height else "the model's size"
        return f"image: {load.batch} pictures of {size}" if load.batch > 1 else f"image: {size}"
    return (
        f"{load.kind}: a prompt of {load.prompt} tokens, {load.new_tokens} new ones, a context of "
        f"{load.context}"
    )


def _sources(plan: Plan) -> str:
    frontier = plan.provenance.get("frontier")
    if frontier is None:
        return "Scores:"
    return f"Frontier: {frontier['preset']}, confidence {frontier['confidence']}. Losses:"


def _some(options: Sequence[Option]) -> list[Option]:
    """At most `ROWS` of the Pareto set that differ in score, the JSON form has all."""
    best = sorted(options, key=lambda o: o.quality.mean)
    step = max(1, -(-len(best) // ROWS))
    return best[::-1][::step]


def _said(one: Option) -> str:
    costs, quality = one.costs, one.quality
    score = f"score {quality.mean:.3f} ({quality.low:.3f} to {quality.high:.3f})"
    memory = f"{costs.memory / 1e6:.0f} MB"
    if isinstance(one.candidate, Sketch):
        return f"{score}, {costs.total_s:.3g} s in all, {costs.token_s:.3g} s a step, {memory}"
    return (
        f"{score}, {costs.token_s * 1e3:.1f} ms a token, {costs.ttft_s * 1e3:.0f} ms to the first, "
        f"{memory}"
    )


def table(options: Sequence[Option]) -> list[str]:
    """Options as rows of a Markdown table."""
    drawn = any(isinstance(one.candidate, Sketch) for one in options)
    times = "s in all | s a step" if drawn else "ms a token | ms to the first"
    out = [
        f"| Candidate | Score | 5 to 95 % | {times} | MB | Loss by |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in options:
        c, q = one.costs, one.quality
        seconds = f"{c.total_s:.3g} | {c.token_s:.3g}"
        if not drawn:
            seconds = f"{c.token_s * 1e3:.1f} | {c.ttft_s * 1e3:.0f}"
        out.append(
            f"| {printable(one.label)} | {q.mean:.3f} | {q.low:.3f} to {q.high:.3f} | "
            f"{seconds} | {c.memory / 1e6:.0f} | {q.source} |"
        )
    return out


def picture(plan: Plan, path: Path) -> None:
    """Score over total time of the Pareto set, memory as size, with its uncertainty; a PNG file
    whatever its name, written by matplotlib. Raises RequestError without that, ResourceError as
    `write_output` does."""
    from ..errors import RequestError
    from ..extras import require

    require("matplotlib", "a picture of a plan", RequestError)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for one in plan.pareto:
        quality = one.quality
        error = [[quality.mean - quality.low], [quality.high - quality.mean]]
        chosen = plan.choice is not None and one.label == plan.choice.label
        color = "tab:red" if chosen else "tab:blue"
        axes.errorbar(one.costs.total_s, quality.mean, yerr=error, color=color, alpha=0.4)
        axes.scatter(one.costs.total_s, quality.mean, s=one.costs.memory / 2e7, color=color)
        if chosen:
            axes.annotate(one.label, (one.costs.total_s, quality.mean), fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("seconds in all")
    axes.set_ylabel("score")
    axes.set_title(f"{plan.device}: what can be had (size: memory)")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, format="png")
    write_output(path, drawn.getvalue())
