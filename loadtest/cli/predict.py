"""`ullage predict`: how many requests at once, and how fast, from a simulated server in seconds."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from estimator.spec import EngineName, Interval, SpecError
from estimator.twin.cost import ServerCost
from estimator.twin.forecast import forecast, mean_tokens
from estimator.twin.goals import Goal
from estimator.twin.profile import read_profile
from loadtest.cli.engine_flags import catalog_names, engine_flags
from loadtest.cli.limit_flags import GoodputCommand, goodput_flags, limits_asked
from loadtest.reporter.forecast_text import ForecastPage, forecast_dict, forecast_text
from loadtest.scenario import Scenario, read_scenario

if TYPE_CHECKING:
    from estimator.estimate import Estimate

PATH = click.Path(path_type=Path)


@click.command(cls=GoodputCommand)
@click.option("--scenario", type=PATH, required=True, help="What is sent, and what counts as good.")
@goodput_flags
@click.option(
    "--model",
    shell_complete=catalog_names("models"),
    help="With --gpu: a config.json, a model folder, or a name from `ullage models`.",
)
@click.option("--twin", help="An engine of configs/engines instead of a model. Default: the scenario's.")
@engine_flags
@click.option(
    "--scheduling-policy", type=click.Choice(["fcfs", "priority"]), default="fcfs", show_default=True
)
@click.option("--watermark", type=float, default=0.0, show_default=True, help="Share of blocks kept free.")
@click.option(
    "--server-log", type=PATH, help="The server's start-up output: its overheads replace the priors."
)
@click.option("--no-calibration", is_flag=True, help="Use the priors, whatever was learned before.")
@click.option("--hub-weights", help="Read the safetensors headers of this OWNER/NAME on the hub.")
@click.option("--calibration", type=PATH, help="What `ullage calibrate` kept of the server: its steps' cost.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_context
def predict(context: click.Context, /, **options: Any) -> None:
    """How many requests at once, and how fast? N by arithmetic, latencies from a simulated server.

    The engine's scheduler runs on a virtual clock at six to eight concurrencies: no GPU, some seconds.
    """
    scenario = read_scenario(options["scenario"], limits_asked(options))
    if options["model"] is not None or options["gpu"] is not None:
        page = _of_model(scenario, options)
    else:
        page = _of_twin(
            scenario, options["twin"] or scenario.twin, _flags_given(context), options["calibration"]
        )
    click.echo(json.dumps(forecast_dict(page), indent=2) if options["as_json"] else forecast_text(page))


def _of_model(scenario: Scenario, options: dict[str, Any]) -> ForecastPage:
    # half of the start-up, and a twin of a file needs none of it
    from estimator.estimate import VERSIONS
    from estimator.twin.from_model import cautions_of, cost_of_estimate, limits_of_estimate
    from loadtest.cli.answers import estimate_from
    from loadtest.cli.keeping import kept_cost

    if options["twin"] is not None:
        raise SpecError("give --twin, or --model and --gpu, not both")
    if options["model"] is None or options["gpu"] is None:
        raise SpecError("give both --model and --gpu, such as: --model Qwen3-8B --gpu h100-80gb")
    workload = scenario.workload
    answer = estimate_from(options["model"], options, workload)
    limits = limits_of_estimate(
        answer, scheduling_policy=options["scheduling_policy"], watermark=options["watermark"]
    )
    context_tokens = mean_tokens(workload.input_tokens) + mean_tokens(workload.output_tokens) / 2
    prior, goal = cost_of_estimate(answer, round(context_tokens)), _goal(scenario)
    cost = _measured(options["calibration"], options["engine"], prior)
    if cost is prior and not options["no_calibration"]:
        cost = kept_cost(answer) or prior
    gpus = answer.engine.tp * answer.engine.pp
    where = f"{f'{gpus} x ' if gpus > 1 else ''}{answer.gpu.name}"
    return ForecastPage(
        scenario=scenario.name,
        server=f"{answer.model.name} on {where} | {VERSIONS[answer.engine.engine]}",
        prediction=answer.prediction,
        n_guaranteed=answer.n_guaranteed,
        n_sustained=answer.n_sustained,
        n_saturation=answer.n_saturation,
        cost=cost,
        goal=goal,
        forecast=forecast(limits, cost, answer.prediction, goal, seed=scenario.seed),
        seed=scenario.seed,
        cautions=(
            *answer.budget.cautions,
            *cautions_of(answer),
            *(_kept_elsewhere(answer) if cost is prior and not options["no_calibration"] else ()),
        ),
    )


def _measured(file: Path | None, engine: EngineName, otherwise: ServerCost) -> ServerCost:
    if file is None:
        return otherwise
    from estimator.twin.cost_file import read_cost

    measured = read_cost(file)
    if measured.engine != engine:
        raise SpecError(f"{file} was measured on {measured.engine}, not {engine}: calibrate this server")
    return measured.cost


def _kept_elsewhere(answer: Estimate) -> tuple[str, ...]:
    """A measured cost of this model says nothing of its GPU, so a person has to say that it fits."""
    from estimator.twin.cost_file import cost_path, read_cost

    path = cost_path(answer.model.name, answer.engine.engine)
    if not path.is_file():
        return ()
    return (
        f"a step cost {read_cost(path).cost.source} is kept: if that was this GPU, use --calibration {path}",
    )


def _of_twin(
    scenario: Scenario, name: str | None, flags: list[str], calibration: Path | None
) -> ForecastPage:
    from estimator.capacity import predict as by_arithmetic

    if name is None:
        raise SpecError("give --model and --gpu, or --twin, such as: --twin tiny")
    if flags:
        raise SpecError(f"{flags[0]} belongs to --model and --gpu; the twin's flags stand in its file")
    profile = read_profile(name)
    prediction = by_arithmetic(
        profile.pool, scenario.workload, max_model_len=profile.max_model_len, slots=profile.max_num_seqs
    )
    own = ServerCost(step=profile.step_cost, source=f"configs/engines/{name}.yaml")
    cost, goal = _measured(calibration, "vllm", own), _goal(scenario)
    return ForecastPage(
        scenario=scenario.name,
        server=f"twin {name}",
        prediction=prediction,
        n_guaranteed=Interval.exact(prediction.n_guaranteed),
        n_sustained=Interval.exact(prediction.n_sustained or 0),
        n_saturation=Interval.exact(prediction.n_saturation),
        cost=cost,
        goal=goal,
        forecast=forecast(profile.limits, cost, prediction, goal, seed=scenario.seed),
        seed=scenario.seed,
    )


def _goal(scenario: Scenario) -> Goal:
    return Goal(**{field.name: getattr(scenario.limits, field.name) for field in fields(Goal)})


def _flags_given(context: click.Context) -> list[str]:
    """Flags of the command line that say something of a model's server."""
    own = ("scenario", "goodput", "percentile", "model", "twin", "calibration", "as_json")
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in own
        and context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]
