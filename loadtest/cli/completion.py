"""`ullage completion`: the script by which a shell completes commands, flags, models and GPUs."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script. In ~/.bashrc: eval "$(ullage completion bash)"."""
    from loadtest.cli import main

    maker = get_completion_class(shell)
    assert maker is not None
    click.echo(maker(main, {}, "ullage", "_ULLAGE_COMPLETE").source())
