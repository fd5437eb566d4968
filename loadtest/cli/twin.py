"""`ullage twin`: a simulated server on this machine, from an engine profile or from a model and a GPU."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from estimator.spec import SpecError
from estimator.twin.command import main
from loadtest.cli.engine_flags import catalog_names, engine_flags

if TYPE_CHECKING:
    from estimator.twin.profile import TwinProfile

MODEL_FLAGS: Final = {"--model", "--gpu"}
HELP_FLAGS: Final = {"-h", "--help"}
REST: Final = {"ignore_unknown_options": True}


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def twin(arguments: tuple[str, ...]) -> None:
    """Serve a simulated vLLM whose saturation emerges from its scheduler."""
    named = {argument.partition("=")[0] for argument in arguments}
    if named & MODEL_FLAGS and not named & HELP_FLAGS:
        of_model.main(list(arguments), prog_name="ullage twin", standalone_mode=False)
    sys.exit(main(arguments, program="ullage twin"))


@click.command(context_settings=REST, add_help_option=False)
@click.option("--model", shell_complete=catalog_names("models"))
@engine_flags
@click.option("--no-calibration", is_flag=True)
@click.argument("rest", nargs=-1, type=click.UNPROCESSED)
def of_model(rest: tuple[str, ...], **options: Any) -> None:
    """The same with the flags of `ullage estimate`; what is left over is the twin's own."""
    arguments = ["--engine", options["engine"], "--backend", options["backend"], *rest]
    sys.exit(main(arguments, program="ullage twin", profile=_profile(options)))


def _profile(options: dict[str, Any]) -> TwinProfile:
    # reading a model is half of the start-up, and a twin of a file needs none of it
    from estimator.twin.from_model import profile_of_estimate
    from loadtest.cli.answers import estimate_from

    if options["model"] is None or options["gpu"] is None:
        raise SpecError("give both --model and --gpu, such as: --model Qwen2.5-7B --gpu a10")
    return profile_of_estimate(estimate_from(options["model"], options, None))
