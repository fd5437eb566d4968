"""`--resume RUN`: everything that the interrupted run was asked is asked again, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from loadtest.conductor.signoff import SignoffRequest

Command = Callable[..., Any]
STILL_ASKED: Final = frozenset(
    {"resume", "max_minutes", "processes", "runs_root", "allow_public_host", "no_audit", "no_calibration"}
)
"""Flags that say how to go on. What is sent to whom, and what is good, was said when the run began."""


def resume_flag(command: Command) -> Command:
    return click.option(
        "--resume",
        metavar="RUN",
        type=click.Path(path_type=Path),
        help="Go on where this run was interrupted: its scenario, its server, its limits.",
    )(command)


def resumed(options: Mapping[str, Any], context: click.Context) -> SignoffRequest:
    """Raises ResumeError for a flag that has no say here, and for a run that cannot go on."""
    from loadtest.conductor.past import ResumeError, read_past  # numpy costs a tenth of a second

    root: Path = options["resume"]
    given = {name for name in options if _is_given(context, name)}
    others = [_spelled(context, name) for name in options if name in given - STILL_ASKED]
    if others:
        raise ResumeError(
            f"--resume takes what is sent, to whom and under which limits from {root}: leave out "
            f"{', '.join(others)}"
        )
    past = read_past(root)
    manifest, prediction = past.manifest, past.prediction
    is_ours = manifest.named is not None and manifest.named.twin is not None
    return SignoffRequest(
        scenario=past.scenario_for(options["max_minutes"]),
        host=None if is_ours else manifest.host,
        engine=manifest.engine,
        model=manifest.model,
        max_num_seqs=None if prediction is None else prediction.n_slots,
        max_model_len=None,
        pool=None,
        textbook=manifest.textbook,
        named=manifest.named,
        processes=options["processes"] if "processes" in given else manifest.processes,
        runs_root=options["runs_root"] if "runs_root" in given else root.parent,
        access=manifest.access,
        users_cap=manifest.users_cap,
        allow_public_host=options["allow_public_host"],
        telemetry=manifest.telemetry,
        audits=not options["no_audit"],
        past=past,
    )


def _is_given(context: click.Context, name: str) -> bool:
    """On the command line: what the environment says of a new run is not said of this one."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _spelled(context: click.Context, name: str) -> str:
    return next(one.opts[0] for one in context.command.params if one.name == name)
