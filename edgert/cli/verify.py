"""`edgert verify`: is a bundle what its maker wrote?"""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from .settings import emit_json, json_option, kv_bits_option


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--values", is_flag=True, help="Look at every float for NaN and infinities, too.")
@click.option(
    "--device",
    help="Answer the golden prompts on this device and compare; of "
    "pictures, compare each part with the NumPy path.",
)
@kv_bits_option
@json_option
def command(bundle: Path, values: bool, device: str | None, kv_bits: int, as_json: bool) -> int:
    """Check BUNDLE: manifest, size and SHA-256 of every file, graphs, types and shapes of tensors.

    Tells all that is wrong and exits with 1 if anything is.
    """
    if kv_bits and device is None:
        raise click.UsageError("--kv-bits needs --device, which computes the answers")
    from ..evaluation.verify import verify_bundle
    from ..session.options import SessionOptions

    options = SessionOptions(device=device, kv_bits=kv_bits) if device else None
    report = verify_bundle(bundle, options, values=values)
    if as_json:
        emit_json({"schema": 1, **msgspec.to_builtins(report)})
        return 0 if report.ok else 1
    for check in report.checks:
        click.echo(f"{'ok   ' if check.ok else 'BAD  '} {check.subject}")
        if not check.ok:
            click.echo(f"      {check.message}")
            if check.hint:
                click.echo(f"      hint: {check.hint}")
    for counts in report.values:
        click.echo(
            f"note  {counts.tensor}: {counts.nan} NaN, {counts.infinite} infinite, "
            f"{counts.denormal} denormal, {counts.zero} zero of {counts.size}"
        )
    for name in report.unlisted:
        click.echo(f"note  {name} is not part of the bundle and is never read")
    click.echo(f"{bundle}: {'verified' if report.ok else 'NOT what it claims to be'}")
    return 0 if report.ok else 1
