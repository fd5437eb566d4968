"""`ullage doctor`: is this machine fit for the load, and does the server answer as it should?"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadtest.audit import Check, Level, exit_code
from loadtest.cli.access_flags import access_flags, allow_public_host_flag, origin_from, users_cap_flag
from loadtest.conductor.audit.doctor import Diagnosis, DoctorRequest, examine
from loadtest.reporter.plain import one_line
from loadtest.scenario import read_scenario

MARKS: Final[dict[Level, tuple[str, str]]] = {
    "ok": ("ok", "green"),
    "amber": ("amber", "yellow"),
    "red": ("RED", "bold red"),
    "skipped": ("-", "dim"),
}
NAME_WIDTH, MARK_WIDTH = 16, 5


@click.command()
@click.option("--host", help="Base URL of the server; without it only this machine is looked at.")
@click.option("--scenario", type=click.Path(path_type=Path), help="The load to judge for.")
@click.option("--users", type=click.IntRange(min=1), help="How many at once, instead of the scenario's.")
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Load workers.")
@click.option("--model", help="Served model name; needed only when the server serves several.")
@click.option("--engine", type=click.Choice(["vllm", "lmdeploy"]), help="Default: what /metrics shows.")
@access_flags
@allow_public_host_flag
@users_cap_flag
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def doctor(**options: Any) -> None:
    """Is this machine fit for the load, and does the server answer as it should? Sends three requests or so.

    Ends with 0 when nothing is red, 2 for this machine or the configuration, 3 when the server is not there.
    """
    found = examine(_requested(options), say=lambda line: click.echo(line, err=True))
    click.echo(_json(found) if options["as_json"] else _text(found), nl=options["as_json"])
    sys.exit(exit_code(found.checks))


def _requested(options: dict[str, Any]) -> DoctorRequest:
    host, scenario = options["host"], options["scenario"]
    return DoctorRequest(
        origin=None if host is None else origin_from(host, options),
        scenario=None if scenario is None else read_scenario(scenario),
        engine=options["engine"],
        model=options["model"],
        users=options["users"],
        processes=options["processes"],
        users_cap=options["users_cap"],
        allow_public_host=options["allow_public_host"],
    )


def _json(found: Diagnosis) -> str:
    return json.dumps({**asdict(found), "exit_code": exit_code(found.checks)}, indent=2)


def _text(found: Diagnosis) -> str:
    console = Console(highlight=False)
    with console.capture() as capture:
        title = f"This machine, for {found.users:,} users at {found.tokens_per_s:g} tokens/s each"
        console.print(Text(title, style="bold"))
        console.print(_table(found.client))
        if found.server:
            console.print()
            console.print(Text("The server", style="bold"))
            console.print(_table(found.server))
        console.print()
        console.print(_summary(found.checks))
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def _table(checks: Sequence[Check]) -> Table:
    table = Table.grid(padding=(0, 2), pad_edge=False)
    table.add_column(min_width=NAME_WIDTH, no_wrap=True)
    table.add_column(min_width=MARK_WIDTH, no_wrap=True)
    table.add_column()
    for check in checks:
        mark, style = MARKS[check.level]
        said = Text(one_line(check.said))
        if check.fix:
            said.append(f"\n\N{RIGHTWARDS ARROW} {one_line(check.fix)}", style=style)
        table.add_row(Text(f"  {check.name}"), Text(mark, style=style), said)
    return table


def _summary(checks: Sequence[Check]) -> Text:
    counts = {level: sum(check.level == level for check in checks) for level in MARKS}
    if counts["red"]:
        return Text(f"{counts['red']} red: no load before that is mended", style="bold red")
    if counts["amber"]:
        cautions = "1 caution" if counts["amber"] == 1 else f"{counts['amber']} cautions"
        return Text(f"fit, with {cautions} that a report would repeat", style="yellow")
    return Text("fit", style="bold green")
