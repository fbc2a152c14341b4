"""`edgert pull`: have a model in the store, from the hub or from this machine."""

from __future__ import annotations

from pathlib import Path

import click

from .settings import emit_json, json_option, megabytes


@click.command("pull")
@click.argument("name")
@click.option(
    "--source",
    "source",
    type=click.Path(exists=True, path_type=Path),
    metavar="PATH",
    help="A checkpoint's folder, a GGUF file or a bundle to store under NAME, not the hub's.",
)
@click.option(
    "--method",
    type=click.Choice(("rtn", "hqq", "gptq")),
    help="How codes are chosen, as for `edgert convert`; rtn takes seconds.",
)
@click.option("--force", is_flag=True, help="Make it anew where it is in the store already.")
@json_option
def command(name: str, source: Path | None, method: str | None, force: bool, as_json: bool) -> int:
    """Fetch the model NAME and convert it into the store.

    NAME is a short one, such as qwen3:0.6b-int4 (size and encoding may be left out), or any
    repository of the hub, such as Qwen/Qwen3-0.6B:int8. Every verb takes it in place of a bundle
    afterwards. What is stopped goes on with the same command.
    """
    from ..bundle.pull import pull

    found = pull(name, source=source, force=force, method=method, progress=not as_json)
    if as_json:
        emit_json({"schema": 1, "name": found.name, "path": str(found.path),
                   "bytes": found.nbytes})  # fmt: skip
    else:
        click.echo(f"{found.name}  {megabytes(found.nbytes)}  {found.path}")
    return 0
