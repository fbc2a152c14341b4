"""`edgert completion`: completion of verbs, flags, values and files in bash, zsh and fish."""

from __future__ import annotations

import click

VARIABLE = "_EDGERT_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
NAME = "edgert"


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> int:
    """Print the script for SHELL, which its start-up file reads:

    \b
    bash, in ~/.bashrc:                   eval "$(edgert completion bash)"
    zsh, in ~/.zshrc (after compinit):    eval "$(edgert completion zsh)"
    fish, in ~/.config/fish/config.fish:  edgert completion fish | source
    """
    from click.shell_completion import ShellComplete, get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this click knows no completion for {shell}")
    root = click.get_current_context().find_root().command
    # Not kind's own `source`: that of bash starts a bash to ask for its version.
    click.echo(ShellComplete.source(kind(root, {}, NAME, VARIABLE)))
    return 0


def answer(root: click.Command, instruction: str) -> int:
    """What a shell's script asks for in `VARIABLE`, such as bash_complete; returns 0 when done."""
    from click.shell_completion import shell_complete

    return shell_complete(root, {}, NAME, VARIABLE, instruction)
