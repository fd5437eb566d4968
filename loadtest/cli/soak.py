"""`ullage soak`: one load for hours; does the server drift, leak or restart under it?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from estimator.errors import PlainError
from loadtest.access import NO_AUDIT_VARIABLE
from loadtest.cli.access_flags import access_flags, access_from, allow_public_host_flag, users_cap_flag
from loadtest.cli.limit_flags import GoodputCommand, limit_flags, limits_asked
from loadtest.cli.telemetry_flags import telemetry_flags, telemetry_from
from loadtest.run_folder import Manifest, RunFolder
from loadtest.scenario import Scenario, SoakAsked, limited, parse_scenario, read_scenario, soaking
from loadtest.telemetry import Telemetry

if TYPE_CHECKING:
    from loadtest.conductor.signoff import SignoffRequest

PATH = click.Path(path_type=Path)
SAFE = "safe"


class SoakError(PlainError):
    """What was asked of the soak cannot be done: one sentence that names the fix."""


@click.command(cls=GoodputCommand)
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), required=True, help="How long.")
@click.option(
    "--users", default=SAFE, show_default=True, help="How many at once, or `safe`: what --run signed."
)
@click.option("--run", type=PATH, help="A signed run: its number, its scenario and its server.")
@click.option("--host", help="Base URL of the server; without it --run's, or a simulated one.")
@click.option("--scenario", type=PATH, help="What to send; without it --run's.")
@click.option("--model", help="Served model name; needed only when the server serves several.")
@click.option("--engine", type=click.Choice(["vllm", "lmdeploy"]), help="Default: --run's, or vllm.")
@click.option("--max-num-seqs", type=click.IntRange(min=1), help="The server's own limit, if known.")
@click.option(
    "--dip-every",
    type=click.FloatRange(min=0, min_open=True),
    help="Minutes from dip to dip. Default: 60, of a short soak half of it.",
)
@click.option(
    "--dip",
    "dip_s",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds without load after the last answer. Default: 60, or a fifth of --dip-every.",
)
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Load workers.")
@limit_flags
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
def soak(**options: Any) -> None:
    """Hold a load for hours with a dip in each, and say what drifts."""
    from loadtest.cli.signoff import report_and_exit
    from loadtest.conductor.signoff import sign_off

    done = sign_off(requested(options), say=lambda line: click.echo(line, err=True))
    report_and_exit(done)


def requested(options: dict[str, Any]) -> SignoffRequest:
    """Raises PlainError for what cannot be soaked."""
    from loadtest.conductor.signoff import SignoffRequest

    signed = None if options["run"] is None else RunFolder.open(options["run"])
    manifest = None if signed is None else signed.read_manifest()
    access = access_from(options)
    return SignoffRequest(
        scenario=soaking(_scenario(options, signed), _asked(options, signed)),
        host=options["host"] or (None if manifest is None else manifest.host),
        engine=options["engine"] or ("vllm" if manifest is None else manifest.engine),
        model=options["model"] or (None if manifest is None else manifest.model),
        max_num_seqs=options["max_num_seqs"],
        max_model_len=None,
        pool=None,
        processes=options["processes"],
        runs_root=options["runs_root"],
        access=access,
        users_cap=options["users_cap"],
        allow_public_host=options["allow_public_host"],
        telemetry=_telemetry(options, manifest),
        signed_by=manifest.run_id if manifest is not None and options["users"] == SAFE else None,
        audits=not options["no_audit"],
    )


def _telemetry(options: dict[str, Any], signed: Manifest | None) -> Telemetry:
    """As the flags say; of the signed run's own server, without any, as that run was watched."""
    asked = telemetry_from(options)
    inherits = asked == Telemetry() and signed is not None and options["host"] is None
    return signed.telemetry if inherits and signed is not None else asked


def _scenario(options: dict[str, Any], signed: RunFolder | None) -> Scenario:
    if options["scenario"] is not None:
        return read_scenario(options["scenario"], limits_asked(options))
    if signed is None:
        raise SoakError("name what to send with --scenario, or a signed run with --run")
    return limited(parse_scenario(dict(signed.read_manifest().scenario)), limits_asked(options))


def _asked(options: dict[str, Any], signed: RunFolder | None) -> SoakAsked:
    asked = SoakAsked(users=_users(options["users"], signed), hours=options["hours"], dip_s=options["dip_s"])
    minutes = options["dip_every"]
    return asked if minutes is None else replace(asked, every_s=minutes * 60)


def _users(text: str, signed: RunFolder | None) -> int:
    """A number, or the one that was signed: of a run that did not pass there is none."""
    if text != SAFE:
        if not text.isdecimal() or int(text) < 1:
            raise SoakError(f"--users is a number from 1 on, or {SAFE}; got {text!r}")
        return int(text)
    if signed is None:
        raise SoakError(f"--users {SAFE} needs the run that signed it: add --run, or give a number")
    if signed.read_manifest().is_soak:
        raise SoakError(f"{signed.root} is a soak, which signs no number: name the sign-off")
    from loadtest.reporter.report import judge_run

    verdict = judge_run(signed)
    if verdict.status != "PASS":
        raise SoakError(f"{signed.root} signed no number ({verdict.status}): give --users a number")
    return verdict.n_safe
