"""`ullage signoff`: predict, load, observe and sign in one run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from estimator.errors import EXIT_INTERRUPTED
from estimator.spec import SpecError
from loadtest.access import NO_AUDIT_VARIABLE
from loadtest.cli.access_flags import access_flags, access_from, allow_public_host_flag, users_cap_flag
from loadtest.cli.engine_flags import engine_flags, single
from loadtest.cli.telemetry_flags import telemetry_flags, telemetry_from
from loadtest.conductor.signoff import SignoffRequest, sign_off
from loadtest.scenario import Scenario, ScenarioError, read_scenario, searching

PATH = click.Path(path_type=Path)


@click.command()
@click.option("--scenario", type=PATH, required=True, help="What to send, how much, and what is good.")
@click.option("--host", help="Base URL of the server; without it a simulated one stands in.")
@click.option("--model", help="Served model name; needed only when the server serves several.")
@click.option("--model-config", help="With --gpu: predict from this model (config.json, folder or name) too.")
@engine_flags
@click.option("--search", is_flag=True, help="Look for the limit instead of holding the scenario's stages.")
@click.option(
    "--max-minutes", type=click.FloatRange(min=0, min_open=True), help="The most a search may take."
)
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
@click.option("--runs-dir", "runs_root", type=PATH, default=Path("runs"), show_default=True)
def signoff(**options: Any) -> None:
    """Predict, load, observe and sign, in one run. The flags are those the server was started with."""
    done = sign_off(requested(options), say=lambda line: click.echo(line, err=True))
    # matplotlib takes half a second to import: after the load, not before it
    from loadtest.reporter.lines import five_lines
    from loadtest.reporter.report import write_report

    verdict = write_report(done.folder)
    click.echo("\n".join(five_lines(verdict, str(done.folder.report_path("html")))))
    sys.exit(EXIT_INTERRUPTED if done.was_interrupted else verdict.exit_code)


def requested(options: dict[str, Any]) -> SignoffRequest:
    """Raises PlainError when the scenario, the model or the GPU cannot be used."""
    scenario = _scenario(options)
    model, gpu = options["model_config"], options["gpu"]
    if (model is None) != (gpu is None):
        raise SpecError("give both --model-config and --gpu to predict from them, or neither")
    estimate = textbook = None
    if model is not None:
        from loadtest.cli.answers import estimate_from
        from loadtest.reporter.textbook_case import textbook_facts

        estimate = estimate_from(model, options, scenario.workload)
        textbook = textbook_facts(estimate)
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
        processes=options["processes"],
        runs_root=options["runs_root"],
        access=access_from(options),
        users_cap=options["users_cap"],
        allow_public_host=options["allow_public_host"],
        telemetry=telemetry_from(options),
        audits=not options["no_audit"],
    )


def _scenario(options: dict[str, Any]) -> Scenario:
    """As its file says, with a search in place of its stages where one is asked for."""
    scenario, minutes = read_scenario(options["scenario"]), options["max_minutes"]
    if options["search"]:
        scenario = searching(scenario)
    if minutes is None:
        return scenario
    if scenario.search is None:
        raise ScenarioError("--max-minutes bounds a search, and the scenario gives stages: add --search")
    return searching(scenario, replace(scenario.search, max_minutes=minutes))
