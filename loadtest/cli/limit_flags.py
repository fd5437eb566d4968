"""The flags that say what is good, over what the scenario says; vLLM's own words where it has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from loadtest.scenario.limits import LimitsAsked

Command = Callable[..., Any]


class GoodputCommand(click.Command):
    """Takes `--goodput ttft:2000 tpot:50`: several values after one flag, as `vllm bench serve` does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, each_with_its_flag(args, "--goodput"))


def each_with_its_flag(words: Sequence[str], flag: str) -> list[str]:
    """`--flag a b --other` -> `--flag a --flag b --other`. For a command without arguments of its own."""
    spread: list[str] = []
    before = ""
    for word in words:
        is_one_more = before == flag and spread[-2:-1] == [flag] and not word.startswith("-")
        spread += [flag, word] if is_one_more else [word]
        before = word if word.startswith("-") else before
    return spread


def goodput_flags(command: Command) -> Command:
    """--goodput and --percentile: what a good request is, and how many must be."""
    percentile = click.option("--percentile", type=float, help="Of requests that must keep every limit: 95.")
    goodput = click.option(
        "--goodput",
        multiple=True,
        metavar="KEY:MS ...",
        help="Limits in milliseconds, as in vllm bench serve: ttft:2000 tpot:50 e2el:30000.",
    )
    return goodput(percentile(command))


def limit_flags(command: Command) -> Command:
    """--goodput, --percentile, --confidence, --error-budget and --max-preemptions."""
    for option in (
        click.option(
            "--max-preemptions",
            type=click.FloatRange(min=0),
            metavar="N",
            help="The most preemptions in 100 requests; above, a level does not hold.",
        ),
        click.option("--error-budget", type=float, metavar="SHARE", help="Of requests that may fail: 0.01."),
        click.option("--confidence", type=float, help="With which the signed level is proven: 0.95."),
    ):
        command = option(command)
    return goodput_flags(command)


def limits_asked(options: Mapping[str, Any]) -> LimitsAsked:
    """Of a command with `limit_flags`, or with `goodput_flags` alone."""
    return LimitsAsked(
        goodput=options["goodput"],
        percentile=options["percentile"],
        confidence=options.get("confidence"),
        error_budget=options.get("error_budget"),
        max_preemptions=options.get("max_preemptions"),
    )
