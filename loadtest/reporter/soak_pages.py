"""SoakVerdict -> the lines a person reads first, HTML, Markdown and JSON. Words and layout only."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Final

from loadtest.reporter.client_checks import checks
from loadtest.reporter.drift import BLOCK_MINUTES, TREND_P_VALUE
from loadtest.reporter.drift_chart import draw_drift
from loadtest.reporter.drift_text import COLUMNS, drift_dict, drift_lines, in_words, table, unseen
from loadtest.reporter.lines import client
from loadtest.reporter.method_text import COHORT
from loadtest.reporter.observation import StageObservation
from loadtest.reporter.pages import COLUMNS as STAGE_COLUMNS
from loadtest.reporter.pages import SCHEMA_VERSION, facts, page_environment, stage_rows
from loadtest.reporter.plain import one_line
from loadtest.reporter.soak import SoakVerdict
from loadtest.run_folder import Manifest

HEADLINES: Final = {
    "PASS": "parallel requests are held for good",
    "FAIL": "parallel requests are not held for good",
    "INCONCLUSIVE": "parallel requests: nobody can say yet whether for good",
    "VOID": "parallel requests: this run says nothing",
}


def soak_lines(verdict: SoakVerdict, report_path: str) -> list[str]:
    """Load, Held, Drift, Client, SOAK: label in 12 columns, text of any server made inert."""
    pairs = (
        ("Load", load(verdict)),
        ("Held", held(verdict)),
        *(("Drift" if index == 0 else "", line) for index, line in enumerate(_drift(verdict))),
        ("Client", client(verdict.observation.client)),
        (
            "SOAK",
            f"{verdict.users} parallel requests    {verdict.status}    {report_path}   {verdict.reason}",
        ),
    )
    return [f"{label:<12}{one_line(text)}" for label, text in pairs]


def load(verdict: SoakVerdict) -> str:
    return (
        f"{verdict.users} users for {in_words(verdict.hours_planned)}   "
        f"({verdict.observation.requests:,} requests, {len(verdict.observation.stages)} spells of load)"
    )


def held(verdict: SoakVerdict) -> str:
    stages = verdict.observation.stages
    if not stages:
        return "nothing: no spell of load lasted beyond its settling time"
    return f"{sum(stage.held for stage in stages)} of {len(stages)} spells of load held"


def _drift(verdict: SoakVerdict) -> list[str]:
    """The headline, and what drifts or restarted; the rest is in the report."""
    headline, *rest = drift_lines(verdict.drift)
    return [headline, *(line.strip() for line in rest if ": drifts" in line or " restarted " in line)]


def soak_html(verdict: SoakVerdict, manifest: Manifest, run_path: str) -> str:
    """One self-contained file without script."""
    page = {**_page(verdict, manifest, run_path), "drift_svg": draw_drift(verdict.drift)}
    return page_environment(autoescape=True).get_template("soak.html.j2").render(page=page)


def soak_markdown(verdict: SoakVerdict, manifest: Manifest, run_path: str) -> str:
    """The same without pictures."""
    page = _page(verdict, manifest, run_path)
    return page_environment(autoescape=False).get_template("soak.md.j2").render(page=page)


def soak_json(verdict: SoakVerdict, manifest: Manifest) -> str:
    """Everything a machine needs to judge the verdict again; the time series stay in the rows."""
    observation = verdict.observation
    body: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "soak",
        "run_id": manifest.run_id,
        "host": manifest.host,
        "engine": manifest.engine,
        "model": manifest.model,
        "versions": dict(manifest.versions),
        "seed": manifest.scenario.get("seed"),
        "status": verdict.status,
        "reason": verdict.reason,
        "exit_code": verdict.exit_code,
        "users": verdict.users,
        "hours_planned": verdict.hours_planned,
        "is_complete": manifest.state == "complete",
        "drift": drift_dict(verdict.drift),
        "spells": [_spell(stage) for stage in observation.stages],
        "client": dataclasses.asdict(observation.client),
        "requests": observation.requests,
        "outcomes": dict(observation.outcomes),
        "unknowns": list(observation.unknowns),
    }
    return json.dumps(body, indent=2, ensure_ascii=True) + "\n"


def _spell(stage: StageObservation) -> dict[str, Any]:
    return {**dataclasses.asdict(stage), "violations": sum(stage.violations)}


def _page(verdict: SoakVerdict, manifest: Manifest, run_path: str) -> dict[str, Any]:
    observation = verdict.observation
    return {
        "kind": "Soak",
        "status": verdict.status,
        "number": str(verdict.users),
        "headline": f"{HEADLINES[verdict.status]}: {one_line(verdict.reason)}",
        "model": one_line(manifest.model),
        "engine": manifest.engine,
        "created_utc": manifest.created_utc,
        "lines": [
            ("Load", load(verdict)),
            ("Held", held(verdict)),
            ("Drift", one_line(drift_lines(verdict.drift)[0])),
            ("Client", one_line(client(observation.client))),
        ],
        "restarts": [f"{one_line(where)} after {in_words(at_h)}" for at_h, where in verdict.drift.restarts],
        "drift_columns": COLUMNS,
        "drift_rows": table(verdict.drift),
        "unseen": unseen(verdict.drift),
        "columns": STAGE_COLUMNS,
        "rows": stage_rows(observation),
        "checks": checks(observation),
        "method": _method(verdict),
        "facts": facts(observation, manifest, run_path),
    }


def _method(verdict: SoakVerdict) -> list[str]:
    return [
        f"Judged are the medians of blocks of {BLOCK_MINUTES} minutes at full load. A quantity drifts when "
        f"Mann and Kendall's test of them (p below {TREND_P_VALUE:g}, only what is worse counts), the 95% "
        "interval of their Theil-Sen slope and a practical limit all say so, the trend drawn on over "
        f"{verdict.drift.horizon_h / 24:g} days; or when it jumps at a full hour by more than chance does.",
        "In a dip nothing is asked: what the KV cache still holds then was never given back.",
        f"{COHORT}Settling seconds are not judged.",
    ]
