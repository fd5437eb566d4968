"""`ullage twin`: a simulated vLLM on this machine; the same as `python -m estimator.twin.server`."""

from __future__ import annotations

import sys

import click

from estimator.twin.command import main


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def twin(arguments: tuple[str, ...]) -> None:
    """Serve a simulated vLLM whose saturation emerges from its scheduler."""
    sys.exit(main(arguments, program="ullage twin"))
