"""Verdict -> HTML, Markdown and JSON. Words and layout only: every figure was made before."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Final

import jinja2

from loadtest.reporter.attribution import held_sentences
from loadtest.reporter.audit_text import audit_facts
from loadtest.reporter.charts import draw_charts
from loadtest.reporter.client_checks import checks
from loadtest.reporter.lines import client, gap, observed, predicted, signed
from loadtest.reporter.method_text import method, proof
from loadtest.reporter.observation import Observation, StageObservation
from loadtest.reporter.plain import markdown_cell, one_line, shown
from loadtest.reporter.stages import failed
from loadtest.reporter.verdict import Verdict
from loadtest.reporter.waterfall import waterfall_of
from loadtest.reporter.waterfall_chart import draw_waterfall
from loadtest.reporter.waterfall_text import waterfall_dict, waterfall_rows
from loadtest.run_folder import Manifest
from loadtest.scenario import limits_text

SCHEMA_VERSION: Final = 1
CHART_TEXT: Final = {
    "concurrency": (
        "Predicted and observed concurrency",
        "Four concurrencies a stage: users set, requests in flight, and what the server ran and kept "
        "waiting. Up to the guarantee nothing can be preempted; above saturation requests only queue.",
    ),
    "kv": (
        "KV cache",
        "Share of usable blocks in use, and the mean predicted for the users of each stage (their number "
        "stands above it).",
    ),
    "queues": ("Running and waiting", "What the scheduler ran and what it kept waiting, stage by stage."),
    "latency": (
        "Latency",
        "Exact quantiles over the good requests of each stage. TTFT from the intended send to the first "
        "token; TPOT for every later token.",
    ),
}
WALL_TEXT: Final = {
    "none": "Nothing did",
    "invalid": "The run cannot be judged",
    "client": "The load generator",
    "network": "Something in front of the engine",
    "admission": "The server turned requests away",
    "kv": "The KV cache was full",
    "slots": "All slots were taken (max_num_seqs)",
    "prefill": "Prompts waited for compute",
    "slo": "The limits were broken",
    "plateau": "Throughput stopped growing",
}
COLUMNS: Final = (
    "set", "in flight", "running", "waiting", "KV max", "preempted", "requests", "failed",
    "TTFT p95", "TPOT p95", "tokens/s", "held?",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    cells: tuple[str, ...]
    is_limit: bool


def html_page(verdict: Verdict, manifest: Manifest, run_path: str) -> str:
    """One self-contained file: no script, no address but those that are the run's own text."""
    return (
        page_environment(autoescape=True)
        .get_template("report.html.j2")
        .render(page=_page(verdict, manifest, run_path, with_charts=True))
    )


def markdown_page(verdict: Verdict, manifest: Manifest, run_path: str) -> str:
    """The same without pictures, for a ticket or a pull request."""
    # Markdown is no markup of ours to escape into: the `cell` filter makes text inert instead.
    return (
        page_environment(autoescape=False)
        .get_template("report.md.j2")
        .render(page=_page(verdict, manifest, run_path, with_charts=False))
    )


def json_page(verdict: Verdict, manifest: Manifest) -> str:
    """Everything a machine needs to judge the verdict again; the time series stay in the rows."""
    observation = dataclasses.asdict(verdict.observation)
    for series in ("kv_usage", "running", "waiting", "windows"):
        del observation[series]
    for stage in (*observation["stages"], observation["first_broken"]):
        if stage is not None:
            stage["violations"] = sum(stage["violations"])
    body: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "run_id": manifest.run_id,
        "host": manifest.host,
        "engine": manifest.engine,
        "model": manifest.model,
        "versions": dict(manifest.versions),
        "seed": manifest.scenario.get("seed"),
        "buffer_ratio": verdict.buffer_ratio,
        "is_unverified": manifest.origin.is_unverified,
        "audit": [dataclasses.asdict(check) for check in manifest.audit],
    }
    for field in dataclasses.fields(verdict):
        if field.name not in ("observation", "prediction", "evidence"):
            body[field.name] = getattr(verdict, field.name)
    body["evidence"] = dataclasses.asdict(verdict.evidence)
    body["prediction"] = None if verdict.prediction is None else dataclasses.asdict(verdict.prediction)
    body["waterfall"] = waterfall_dict(waterfall_of(verdict, manifest.textbook))
    body["observation"] = observation
    return json.dumps(body, indent=2, ensure_ascii=True) + "\n"


def page_environment(*, autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("loadtest.reporter"),
        autoescape=autoescape,  # noqa: S701  (on for HTML)
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = markdown_cell
    return environment


def _page(verdict: Verdict, manifest: Manifest, run_path: str, *, with_charts: bool) -> dict[str, Any]:
    observation, runner_up = verdict.observation, verdict.observation.wall.runner_up
    charts = draw_charts(verdict) if with_charts else {}
    waterfall = waterfall_of(verdict, manifest.textbook)
    return {
        "status": verdict.status,
        "number": str(verdict.n_safe) if verdict.status in ("PASS", "INCONCLUSIVE") else "\N{EN DASH}",
        "headline": _headline(verdict),
        "arithmetic": _arithmetic(verdict),
        "model": one_line(manifest.model),
        "engine": manifest.engine,
        "created_utc": manifest.created_utc,
        "lines": [
            ("Predicted", predicted(verdict)),
            ("Observed", one_line(observed(observation))),
            ("Gap", one_line(gap(verdict))),
            ("Client", one_line(client(observation.client))),
            ("Sign-off", one_line(signed(verdict, run_path))),
        ],
        "proof": proof(verdict),
        "wall": WALL_TEXT[observation.wall.name],
        "wall_name": observation.wall.name,
        "wall_evidence": one_line(observation.wall.evidence),
        "runner_up": None if runner_up is None else one_line(f"{runner_up.name}; {runner_up.evidence}"),
        "attribution": held_sentences(verdict.prediction, observation),
        "waterfall": [] if waterfall is None else waterfall_rows(waterfall),
        "waterfall_svg": draw_waterfall(waterfall) if waterfall is not None and with_charts else "",
        "unknowns": [one_line(unknown) for unknown in observation.unknowns],
        "columns": COLUMNS,
        "rows": stage_rows(observation),
        "charts": [
            {"name": name, "title": CHART_TEXT[name][0], "caption": CHART_TEXT[name][1], "svg": svg}
            for name, svg in charts.items()
        ],
        "checks": checks(verdict.observation),
        "method": method(verdict),
        "facts": facts(verdict.observation, manifest, run_path),
    }


def _headline(verdict: Verdict) -> str:
    if verdict.status == "PASS":
        return f"parallel requests may be promised: {verdict.reason}"
    return verdict.reason


def _arithmetic(verdict: Verdict) -> str:
    named = (
        ("N_guaranteed", verdict.n_kv),
        ("N_slots", verdict.n_slots),
        ("N_slo", verdict.n_slo),
        ("N_max", verdict.n_max),
    )
    known = ", ".join(f"{name} {value}" for name, value in named if value is not None)
    unknown = ", ".join(name for name, value in named if value is None)
    rest = f" Not known or not set: {unknown}." if unknown else ""
    return f"N_safe = floor({1 - verdict.buffer_ratio:g} x min({known})) = {verdict.n_safe}.{rest}"


def stage_rows(observation: Observation) -> list[Row]:
    """The cells of COLUMNS, stage by stage."""
    return [_row(stage, is_limit=stage.users == observation.n_max) for stage in observation.stages]


def _row(stage: StageObservation, *, is_limit: bool) -> Row:
    return Row(
        cells=(
            str(stage.users_set) if stage.rate_per_s is None else f"{stage.rate_per_s:g}/s",
            f"{stage.in_flight_mean:.1f}",
            shown(stage.running_mean, "{:.1f}"),
            shown(stage.waiting_mean, "{:.1f}"),
            shown(stage.kv_usage_max_ratio, "{:.0%}"),
            shown(stage.preemptions, "{:.0f}"),
            str(stage.requests),
            str(failed(stage.outcomes)),
            shown(stage.ttft.p95_s * 1000 if stage.ttft else None, "{:,.0f} ms"),
            shown(stage.tpot.p95_s * 1000 if stage.tpot else None, "{:,.1f} ms"),
            f"{stage.output_tokens_per_s:,.0f}",
            _held(stage),
        ),
        is_limit=is_limit,
    )


def _held(stage: StageObservation) -> str:
    if stage.client.faults:
        return f"void: {'; '.join(stage.client.faults)}"
    if not stage.held:
        return "; ".join(stage.faults)
    return "held" if stage.is_fully_seen else "held, as far as seen"


def facts(observation: Observation, manifest: Manifest, run_path: str) -> list[tuple[str, str]]:
    """What a run was, for whoever repeats it."""
    outcomes = ", ".join(f"{name} {count}" for name, count in sorted(observation.outcomes.items()))
    found = [
        ("run", run_path),
        ("server", f"{manifest.host} ({manifest.engine}, {manifest.model})"),
        ("scenario", f"{manifest.scenario.get('name')}, seed {manifest.scenario.get('seed')}"),
        ("limits", limits_text(observation.limits)),
        ("requests", f"{observation.requests}: {outcomes or 'none'}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in sorted(manifest.versions.items()))),
        ("state", manifest.state),
        *audit_facts(manifest),
    ]
    if manifest.signed_by is not None:
        found.append(("number", f"signed by {manifest.signed_by}"))
    if observation.damaged_lines:
        found.append(("damage", f"{observation.damaged_lines} unreadable lines were skipped"))
    return [(label, one_line(text)) for label, text in found]
