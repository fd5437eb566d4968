"""The `ullage` command. A command's module is imported only when that command runs, so --help is quick.

Exit codes: 0 PASS, 1 FAIL (limit breached), 2 usage or configuration, 3 target unreachable or died,
4 inconclusive, 5 client-bound (void); 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final

import click

from estimator.errors import EXIT_INTERRUPTED, PlainError

COMMANDS: Final = {
    "estimate": "How many requests fit? From model, GPU and engine flags.",
    "predict": "How many, and how fast? A scenario against a simulated server, in seconds.",
    "twin": "Serve a simulated vLLM whose saturation emerges from its scheduler.",
    "calibrate": "Measure what a step of a running server costs, for predict and twin.",
    "doctor": "Is this machine fit for the load, and does the server answer as it should?",
    "signoff": "Predict, load, observe and sign, in one run.",
    "soak": "Hold a load for hours, and say what drifts.",
    "scenario": "What a scenario will send, in tokens, before it is sent.",
    "report": "Make the report of a run again, from its rows.",
    "whatif": "A finished run on another GPU or with other flags: what would it do?",
    "compare": "Two runs of one workload: what differs, and is it more than noise?",
    "gate": "A run against the baseline of the repository, for CI.",
    "rules": "Write the limits and alerts of a signed run for Prometheus.",
    "recover": "Seal the rows of a run that died, and say what was lost.",
    "export": "Write a run's requests as CSV, Parquet, SQLite or vllm bench's JSON.",
    "models": "List the models that can be named.",
    "gpus": "List the GPUs that can be named, with their memory and speed.",
    "completion": "Print the script by which a shell completes ullage.",
}


class LazyGroup(click.Group):
    """Finds a command in the module loadtest.cli.<name>; errors of any command end in one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"loadtest.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PlainError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail("interrupted", EXIT_INTERRUPTED)


def _fail(sentence: str, exit_code: int) -> None:
    from loadtest.reporter.plain import one_line

    click.echo(f"ullage: {one_line(sentence)}", err=True)  # a server's words may stand in it
    sys.exit(exit_code)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ullage", prog_name="ullage")
def main() -> None:
    """Capacity sign-off for self-hosted LLMs: how many requests fit at once, and is that true?"""
