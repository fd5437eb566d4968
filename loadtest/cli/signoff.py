"""`ullage signoff`: predict, load, observe and sign in one run."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from estimator.errors import EXIT_INTERRUPTED, PlainError
from estimator.spec import SpecError
from loadtest.access import NO_AUDIT_VARIABLE
from loadtest.cli.access_flags import (
    access_flags,
    access_from,
    allow_public_host_flag,
    tokenizer_flag,
    users_cap_flag,
)
from loadtest.cli.engine_flags import engine_flags, engine_from, single
from loadtest.cli.limit_flags import GoodputCommand, limit_flags, limits_asked
from loadtest.cli.resuming import resume_flag, resumed
from loadtest.cli.telemetry_flags import telemetry_flags, telemetry_from
from loadtest.conductor.signoff import SignedOff, SignoffRequest, sign_off
from loadtest.named_server import NamedServer, is_simulated
from loadtest.run_folder import RunFolder
from loadtest.scenario import Scenario, ScenarioError, read_scenario, searching
from loadtest.scenario.reading import counted_with

if TYPE_CHECKING:
    from loadtest.reporter.verdict import Verdict

PATH = click.Path(path_type=Path)


@click.command(cls=GoodputCommand)
@click.option("--scenario", type=PATH, help="What to send, how much, and what is good.")
@resume_flag
@tokenizer_flag
@click.option("--host", help="Base URL of the server; without it a simulated one stands in.")
@click.option("--model", help="Served model name; needed only when the server serves several.")
@click.option("--model-config", help="With --gpu: predict from this model (config.json, folder or name) too.")
@engine_flags
@click.option("--search", is_flag=True, help="Look for the limit instead of holding the scenario's stages.")
@click.option(
    "--max-minutes", type=click.FloatRange(min=0, min_open=True), help="The most a search may take."
)
@limit_flags
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Load workers.")
@access_flags
@telemetry_flags
@allow_public_host_flag
@users_cap_flag
@click.option(
    "--no-audit",
    is_flag=True,
    envvar=NO_AUDIT_VARIABLE,
    help="Start without looking at this machine and at one answer.",
)
@click.option(
    "--no-calibration", is_flag=True, help="Predict by the priors, and keep nothing of what is measured."
)
@click.option("--runs-dir", "runs_root", type=PATH, default=Path("runs"), show_default=True)
@click.pass_context
def signoff(context: click.Context, /, **options: Any) -> None:
    """Predict, load, observe and sign, in one run. The flags are those the server was started with."""
    request = requested(options) if options["resume"] is None else resumed(options, context)
    done = sign_off(request, say=lambda line: click.echo(line, err=True))
    report_and_exit(done, keeps=not options["no_calibration"])


def report_and_exit(done: SignedOff, *, keeps: bool = False) -> NoReturn:
    """Writes the report, says its lines and ends with the verdict's exit code.

    `keeps`: what a signed run of a real server has taught is kept for the next prediction.
    """
    # matplotlib takes half a second to import: after the load, not before it
    from loadtest.reporter.report import report_run

    report = report_run(done.folder)
    click.echo("\n".join(report.lines))
    if keeps and report.verdict is not None:
        _keep(done.folder, report.verdict, was_interrupted=done.was_interrupted)
    sys.exit(EXIT_INTERRUPTED if done.was_interrupted else report.exit_code)


def _keep(folder: RunFolder, verdict: Verdict, *, was_interrupted: bool) -> None:
    """For the next prediction; what cannot be kept is said, and changes nothing of the verdict."""
    from loadtest.cli.keeping import keep

    manifest = folder.read_manifest()
    if was_interrupted or manifest.named is None or is_simulated(manifest.named, manifest.versions):
        return
    try:
        for line in keep(manifest, verdict, datetime.now(UTC)):
            click.echo(line, err=True)
    except PlainError as error:
        click.echo(f"nothing kept: {error}", err=True)


def requested(options: dict[str, Any]) -> SignoffRequest:
    """Raises PlainError when the scenario, the model or the GPU cannot be used."""
    scenario = _scenario(options)
    model, gpu = options["model_config"], options["gpu"]
    if (model is None) != (gpu is None):
        raise SpecError("give both --model-config and --gpu to predict from them, or neither")
    estimate = textbook = named = None
    if model is not None:
        from loadtest.cli.answers import estimate_from
        from loadtest.reporter.textbook_case import textbook_facts

        estimate = estimate_from(model, options, scenario.workload)
        textbook = textbook_facts(estimate)
        named = NamedServer(model=lasting(model), gpu=estimate.gpu.name, flags=engine_from(single(options)))
    slots = options["max_num_seqs"]
    return SignoffRequest(
        scenario=scenario,
        host=options["host"],
        engine=options["engine"],
        model=options["model"],
        max_num_seqs=slots or (None if estimate is None else estimate.budget.limits.max_num_seqs),
        max_model_len=single(options)["max_model_len"],
        pool=None if estimate is None else estimate.pool,
        textbook=textbook,
        named=named,
        processes=options["processes"],
        runs_root=options["runs_root"],
        access=access_from(options),
        users_cap=options["users_cap"],
        allow_public_host=options["allow_public_host"],
        telemetry=telemetry_from(options),
        audits=not options["no_audit"],
    )


def lasting(model: str) -> str:
    """A path that is good from any folder; a catalog's name as it is."""
    return str(Path(model).resolve()) if Path(model).exists() else model


def _scenario(options: dict[str, Any]) -> Scenario:
    """As its file says, under the limits and with the search that the command line asks for."""
    if options["scenario"] is None:
        raise ScenarioError("name what to send with --scenario, or an interrupted run with --resume")
    scenario = counted_with(read_scenario(options["scenario"], limits_asked(options)), options["tokenizer"])
    minutes = options["max_minutes"]
    if options["search"]:
        scenario = searching(scenario)
    if minutes is None:
        return scenario
    if scenario.search is None:
        raise ScenarioError("--max-minutes bounds a search, and the scenario gives stages: add --search")
    return searching(scenario, replace(scenario.search, max_minutes=minutes))
