"""`edgert devices`: profiles of devices, and measuring this one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import printable
from .settings import emit_json, json_option, megabytes, say

if TYPE_CHECKING:
    from ..devices.profile import Figure, Profile


@click.group("devices")
def command() -> None:
    """List and show device profiles; probe measures this machine."""


@command.command("list")
@json_option
def list_devices(as_json: bool) -> int:
    """Name the profiles that come along."""
    from ..devices.load import load, names

    profiles = [load(name) for name in names()]
    if as_json:
        rows = [{"name": p.name, "title": p.title, "modes": sorted(p.modes),
                 "measured": p.measured is not None} for p in profiles]  # fmt: skip
        emit_json({"schema": 1, "devices": rows})
        return 0
    for profile in profiles:
        modes = f" (modes: {', '.join(sorted(profile.modes))})" if profile.modes else ""
        click.echo(_line(f"{profile.name:22} {profile.title}{modes}"))
    return 0


@command.command("show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> int:
    """Print the profile NAME, or that of a file, with the source of every number."""
    import msgspec

    from ..devices.load import load
    from ..devices.profile import figures

    profile = load(name)
    if as_json:
        emit_json({"schema": 1, "profile": msgspec.to_builtins(profile)})
        return 0
    click.echo(_line(f"{profile.label}: {profile.title}"))
    for at, figure in figures(profile):
        said = f"  {at:32} {_shown(at, figure):>14}  {figure.basis:9} {figure.source}"
        click.echo(_line(said))
    if profile.measured:
        _show_rates(profile)
    for key, text in profile.sources.items():
        click.echo(_line(f"  [{key}] {text}"))
    if profile.notes:
        click.echo(_line(f"  {profile.notes}"))
    return 0


def _line(text: str) -> str:
    """Texts of a file as one line, with what could steer a terminal escaped."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def _shown(at: str, figure: Figure) -> str:
    value, last = figure.value, at.rpartition(".")[2]
    if last in ("total", "usable", "size"):
        return megabytes(value)
    if last in ("bandwidth", "read"):
        return f"{value / 1e9:.2f} GB/s"
    if last in ("flops", "int8_ops", "provider_flops"):
        return f"{value / 1e9:.0f} GOP/s"
    if last == "clock_hz":
        return f"{value / 1e9:.2f} GHz"
    return f"{value * 1e6:.2f} µs" if last == "launch_s" else f"{value:g}"


def _show_rates(profile: Profile) -> None:
    measured = profile.measured
    if measured is None:
        return
    said = f"  measured {measured.at} with {measured.isa}: predictions deviate by "
    others = f"{measured.spread:.0%}, others kept {measured.busy_cores:.2f} cores busy"
    click.echo(_line(said + others))
    for rates in measured.rates:
        click.echo(
            f"    {rates.threads} threads: step {rates.step_s * 1e6:.1f} µs, instruction "
            f"{rates.launch_s * 1e6:.2f} µs, attention {rates.attend_bytes_s / 1e9:.1f} GB/s"
        )
        for product in rates.products:
            sizes = ", ".join(f"{r / 1e9:.1f} GB/s at {megabytes(s)}" for s, r in product.decode)
            ops = f"{product.ops_s / 1e9:.0f} GOP/s"
            click.echo(_line(f"      {product.kernel:8} {sizes}; {ops}"))


@command.command("probe")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the profile here.")
@click.option("--name", default="", help="What to call this machine; default: its host name.")
@click.option("-t", "--threads", multiple=True, type=click.IntRange(1), metavar="N",
              help="Default: one, half and all performance cores; may be repeated.")  # fmt: skip
@click.option("--encoding", "encodings", multiple=True, metavar="NAME",
              help="Whose products are timed; default: int4-g32, int8-g32, f16.")  # fmt: skip
@click.option("--thermal", is_flag=True, help="Measure again after 120 s of load.")
@click.option("--quick", is_flag=True, help="Fewer sizes, in half a minute; less exact.")
@json_option
def probe_command(
    output: Path | None,
    name: str,
    threads: tuple[int, ...],
    encodings: tuple[str, ...],
    thermal: bool,
    quick: bool,
    as_json: bool,
) -> int:
    """Measure this machine, in two to six minutes (with --thermal two more): a profile from which
    times are predicted."""
    import msgspec

    from ..devices.load import to_toml
    from ..machine.probe import Options, probe
    from ..machine.probe_runs import CODES, check_encodings
    from ..storage.aside import check_target, write_output

    check_target(output)
    options = Options(
        threads, check_encodings(encodings) or CODES, 0.1 if quick else 0.25, thermal, quick
    )
    profile = probe(options, name=name, progress=_progress(as_json))
    text = to_toml(profile)
    if output is not None:
        write_output(output, text.encode("utf-8"))
        say(f"{output}: written; edgert test BUNDLE --device {output} --predict")
    if as_json:
        emit_json({"schema": 1, "profile": msgspec.to_builtins(profile)})
    elif output is None:
        click.echo(text, nl=False)
    busy = profile.measured.busy_cores if profile.measured else 0.0
    if busy > 0.2:
        say(f"other processes kept {busy:.1f} cores busy: measure again on a quiet machine")
    return 0


def _progress(quiet: bool) -> Callable[[str, float], None]:
    """A line on stderr every few seconds, or at each step where a person looks."""
    last, person = [-10.0], sys.stderr.isatty()

    def tell(what: str, share: float) -> None:
        now = time.monotonic()
        if not quiet and (person or now - last[0] > 10):
            last[0] = now
            say(f"{share:4.0%}  {what}")

    return tell
