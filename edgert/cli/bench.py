"""`edgert bench`: measure speed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from .settings import bundle_or_demo, emit_json, json_option, kv_bits_option, say


@click.command("bench")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "-p",
    "--prompt-tokens",
    default=512,
    show_default=True,
    type=click.IntRange(0),
    help="Length of the prompt; 0: no such test.",
)
@click.option(
    "-n",
    "--max-tokens",
    default=128,
    show_default=True,
    type=click.IntRange(0),
    help="Length of the answer; 0: no such test.",
)
@click.option(
    "-d",
    "--depth",
    "depths",
    multiple=True,
    type=click.IntRange(0),
    metavar="TOKENS",
    help="Tokens already in the state; default: 0; may be repeated.",
)
@click.option(
    "-t",
    "--threads",
    multiple=True,
    type=click.IntRange(1),
    metavar="N",
    help="Default: one per performance core; may be repeated.",
)
@click.option("-r", "--repetitions", default=5, show_default=True, type=click.IntRange(1, 1000))
@click.option("--device", default="cpu", show_default=True, help="Where to compute.")
@kv_bits_option
@json_option
def command(
    bundle: Path | None,
    prompt_tokens: int,
    max_tokens: int,
    depths: tuple[int, ...],
    threads: tuple[int, ...],
    repetitions: int,
    device: str,
    kv_bits: int,
    as_json: bool,
) -> int:
    """Measure how fast BUNDLE, or the model in this package, reads (pp) and writes (tg).

    Tokens are random; tokenizing and sampling are not measured. p90 is the time for one token (tg)
    or for the whole prompt (pp).
    """  # fmt: skip
    from ..machine import bench
    from ..session.options import SessionOptions

    plan = bench.Plan(prompt_tokens, max_tokens, depths or (0,), threads or (None,), repetitions)
    options = SessionOptions(device=device, kv_bits=kv_bits)
    progress = _progress(sys.stderr.isatty())
    path = bundle_or_demo(bundle)
    report = bench.run(path, plan, options, progress=progress)
    if as_json:
        emit_json(report.to_dict())
        return 0
    click.echo(f"{'test':>8} {'depth':>6} {'threads':>7} {'t/s median':>11} {'mean ± std':>18} "
               f"{'p90 ms':>9} {'of read limit':>13}")  # fmt: skip
    for row in report.rows:
        spread = f"{row.tps_mean:.1f} ± {row.tps_std:.1f}"
        share = f"{row.read_share:.0%}" if row.read_share else ""
        click.echo(
            f"{row.test:>8} {row.depth:>6} {row.threads:>7} {row.tps_median:>11.1f} "
            f"{spread:>18} {row.p90_ms:>9.2f} {share:>13}"
        )
    bandwidth = f", reads {report.read_gbps:.1f} GB/s" if report.read_gbps else ""
    click.echo(
        f"{report.bundle} on {report.device}: loaded in {report.load_s:.2f} s, peak memory "
        f"{report.peak_rss_mb:.0f} MB{bandwidth}"
    )
    return 0


def _progress(visible: bool) -> Callable[[str], None]:
    """Shows what is being measured, where a person looks at it."""
    return (lambda what: say(f"… {what}")) if visible else (lambda what: None)
