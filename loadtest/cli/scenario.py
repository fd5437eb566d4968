"""`ullage scenario`: what a scenario will send, in tokens, before it is sent; and which there are."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import click

from estimator.catalog import configs_folder
from loadtest.cli.access_flags import access_flags, origin_from, tokenizer_flag
from loadtest.cli.listing import as_table
from loadtest.conductor.fitting import example_tokens, fitted_to, words_for
from loadtest.conductor.local_tokenizer import LocalTokenizer
from loadtest.conductor.prepare import served_model
from loadtest.conductor.server_facts import ServedModel, read_server
from loadtest.conductor.tokenizer import Counting, Tokenizer
from loadtest.origin import read_api_key
from loadtest.reporter.estimate_text import WIDTH, wrapped
from loadtest.reporter.plain import one_line
from loadtest.scenario import PATHS, Scenario, ScenarioError, read_scenario
from loadtest.scenario.reading import counted_with, reseeded
from loadtest.workload.asker import check_room
from loadtest.workload.outlook import Outlook, Spread, StageOutlook, outlook, shortened

LABEL_WIDTH: Final = 15


@click.group()
def scenario() -> None:
    """What will be sent, and what counts as good: look at a scenario before it runs."""


@scenario.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--seed", type=int, help="Instead of the scenario's.")
@tokenizer_flag
@click.option("--host", help="Base URL of a server, whose tokenizer then counts.")
@click.option("--model", help="Served model name; needed only when the server serves several.")
@click.option("--engine", type=click.Choice(["vllm", "lmdeploy"]), default="vllm", show_default=True)
@access_flags
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def check(file: Path, **options: Any) -> None:
    """What FILE, or the scenario of that NAME, will send, in tokens. Nothing is generated.

    With --host the server's tokenizer counts, and what it would refuse is found; with --tokenizer that one
    counts, with or without a server.
    """
    found = counted_with(read_scenario(file), options["tokenizer"])
    if options["seed"] is not None:
        found = reseeded(found, options["seed"])
    if options["host"] is not None:
        found, seen, counted_by = _as_asked(found, options)
    elif found.tokenizer is not None:
        found, seen, counted_by = _counted_here(found, found.tokenizer, options)
    else:
        seen, counted_by = _unasked(found)
    click.echo(_json(seen) if options["as_json"] else _text(found, seen, counted_by), nl=False)


@scenario.command("list")
def list_() -> None:
    """The scenarios that can be named."""
    rows = []
    for path in sorted((configs_folder() / "scenarios").glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        rows.append((path.stem, first.removeprefix("#").strip()))
    click.echo(as_table({"name": "<", "what it is": "<"}, rows))


def _unasked(found: Scenario) -> tuple[Outlook, str]:
    if found.endpoint == "completions" and found.dataset is None:
        check_room(found, None)
        return outlook(found), "token ids: exact"
    how = "guessed, 4 bytes a token" if found.dataset is not None else "no tokenizer was asked yet"
    return outlook(found), f"{how}: give --host and the server's tokenizer counts"


def _counted_here(found: Scenario, path: str, options: dict[str, Any]) -> tuple[Scenario, Outlook, str]:
    """Counted without a server, whose limits are not known then."""
    own = LocalTokenizer(path=path, model=options["model"] or "MODEL", engine=options["engine"])
    fitted = fitted_to(found, own, [ServedModel(name=one.name, max_model_len=None) for one in found.models])
    return fitted, *_seen(fitted, own)


def _as_asked(found: Scenario, options: dict[str, Any]) -> tuple[Scenario, Outlook, str]:
    """The scenario as that server can be asked it, and what its tokenizer said."""
    origin = origin_from(options["host"], options)
    key = read_api_key(variable=origin.access.api_key_variable)
    facts = read_server(origin, key)
    model = served_model(origin, options["engine"], options["model"], facts)
    server = Tokenizer(origin=origin, key=key, model=model.name, engine=options["engine"])
    fitted = fitted_to(found, server, facts.models)
    longest = fitted.workload.longest_tokens
    if model.max_model_len is not None and longest > model.max_model_len:
        raise ScenarioError(
            f"a request can reach {longest:,} tokens, but {model.name} serves at most "
            f"{model.max_model_len:,} (max_model_len): shorten the lengths"
        )
    return fitted, *_seen(fitted, server)


def _seen(fitted: Scenario, server: Counting) -> tuple[Outlook, str]:
    words = words_for(fitted, server)
    seen = outlook(fitted, words, server.model)
    if isinstance(seen.example.body.get("prompt", ""), list):
        return seen, "token ids: exact"
    counted = example_tokens(fitted, server, seen.example)
    own = fitted.tokenizer
    who = "the server's tokenizer" if own is None else f"the tokenizer {Path(own).name}"
    said = f"{who}: {counted:,} in the request below, {seen.example.input_tokens:,} planned"
    return seen, said if words is None else f"{said}; its template adds {words.overhead_tokens}"


def _json(seen: Outlook) -> str:
    body = asdict(replace(seen, example=replace(seen.example, body={})))
    return json.dumps({**body, "example": shortened(seen.example.body)}, indent=2, ensure_ascii=False) + "\n"


def _text(found: Scenario, seen: Outlook, counted_by: str) -> str:
    example = one_line(json.dumps(shortened(seen.example.body), ensure_ascii=False))
    parts = (
        f"{seen.name}: what it will send (seed {seen.seed})",
        _lengths(seen),
        "\n".join(_facts(found, seen, counted_by)),
        _stages(seen.stages) if seen.stages else "",
        "One request, shortened\n" + textwrap.fill(example, WIDTH, break_on_hyphens=False),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _lengths(seen: Outlook) -> str:
    rows = [
        (label, *_figures(one))
        for label, one in (("input", seen.input_tokens), ("output", seen.output_tokens))
    ]
    rows.append(("together", "", "", "", f"{seen.request_tokens_max:,}"))
    return as_table({"tokens of a request": "<", "mean": ">", "p50": ">", "p95": ">", "longest": ">"}, rows)


def _figures(one: Spread) -> tuple[str, ...]:
    return f"{one.mean:,.0f}", f"{one.p50:,}", f"{one.p95:,}", f"{one.longest:,}"


def _stages(stages: tuple[StageOutlook, ...]) -> str:
    """Only the columns that say something: a closed loop sends as fast as it is answered."""
    columns: dict[str, list[str]] = {
        "stage": [f"{stage.users} users" for stage in stages],
        "seconds": [f"{stage.hold_s:g}" for stage in stages],
        "requests/s": [_count(stage.rate_per_s, "g") for stage in stages],
        "requests": [_count(stage.requests) for stage in stages],
        "input tokens": [_count(stage.input_tokens) for stage in stages],
        "output tokens": [_count(stage.output_tokens) for stage in stages],
        "most tokens in flight": [_count(stage.in_flight_tokens_max) for stage in stages],
    }
    shown = {heading: cells for heading, cells in columns.items() if any(cells)}
    return as_table(
        {heading: "<" if heading == "stage" else ">" for heading in shown},
        list(zip(*shown.values(), strict=True)),
    )


def _count(figure: float | None, form: str = ",.0f") -> str:
    return "" if figure is None else f"{figure:{form}}"


def _facts(found: Scenario, seen: Outlook, counted_by: str) -> list[str]:
    repeated = f"{seen.repeated_ratio:.0%} of the prompt tokens begin as an earlier prompt did"
    facts = (
        ("endpoint", PATHS[found.endpoint]),
        ("arrivals", _arrivals(found)),
        ("search", _search(found)),
        ("conversations", _conversations(found, seen)),
        ("source", _source(found)),
        ("repeated", repeated if seen.repeated_ratio else "nothing: no two prompts begin alike"),
        ("models", ", ".join(f"{one.name} ({one.share:g})" for one in found.models)),
        ("counted by", counted_by),
    )
    return [
        line for label, said in facts if said for line in wrapped(f"{label:{LABEL_WIDTH}}", one_line(said))
    ]


def _arrivals(found: Scenario) -> str:
    kind = found.arrivals.kind
    if kind == "closed":
        return "closed loop: a user asks again when its answer is over"
    if kind == "trace" and found.trace is not None:
        return f"as recorded, {found.trace.speed:g} times as fast"
    return f"{kind}, burstiness {found.arrivals.burstiness:g}" if kind == "gamma" else kind


def _search(found: Scenario) -> str:
    if found.search is None:
        return ""
    start = found.search.start_users
    begins = "the prediction" if start is None else f"{start:,} users"
    return f"begins at {begins}, ends after {found.search.max_minutes:g} minutes at the latest"


def _conversations(found: Scenario, seen: Outlook) -> str:
    if found.session is None:
        return ""
    return f"{seen.turns_mean:.1f} turns on average, {found.session.think_s.mean_s:g} s between them"


def _source(found: Scenario) -> str:
    if found.trace is not None and found.trace.seen is not None:
        rows = found.trace.seen.rows
        return f"{rows:,} requests over {found.trace.seen.span_s:,.0f} s of {found.trace.file}"
    if found.dataset is not None:
        return f"{len(found.dataset.counted):,} rows of {found.dataset.file}"
    return ""
