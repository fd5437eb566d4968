"""A signed verdict -> promtool unit tests of its rules, made from the same numbers. Pure."""

from __future__ import annotations

from typing import Any, Final

from loadtest.reporter.rules import Alert, alerts_of, dump, limits_of, quoted, require_signed, rule_of
from loadtest.reporter.verdict import Verdict
from loadtest.run_folder import Manifest

SERVER: Final = "127.0.0.1:8000"
"""Made up: the rules name no server."""
STEP: Final = "15s"
AT: Final = "10m"


def rules_test_yaml(verdict: Verdict, manifest: Manifest, rules_file: str) -> str:
    """For `promtool test rules`: every record, and every alert just above and just below its number."""
    require_signed(verdict, manifest)
    tests = [_records_test(verdict, manifest)]
    for alert in alerts_of(verdict, manifest):
        tests += [_alert_test(alert, manifest, fires=True), _alert_test(alert, manifest, fires=False)]
    return dump({"rule_files": [rules_file], "evaluation_interval": STEP, "tests": tests})


def _records_test(verdict: Verdict, manifest: Manifest) -> dict[str, Any]:
    model, run_id = quoted(manifest.model), quoted(manifest.run_id)
    asked = []
    for name, value in limits_of(verdict).items():
        record = f"llm_loadtest:{name}_concurrency:signed"
        labels = f"{record}{{model_name={model},run_id={run_id}}}"
        asked.append({"expr": record, "eval_time": AT, "exp_samples": [{"labels": labels, "value": value}]})
    return {"interval": STEP, "input_series": [], "promql_expr_test": asked}


def _alert_test(alert: Alert, manifest: Manifest, *, fires: bool) -> dict[str, Any]:
    rule = rule_of(alert, manifest)
    labels = {"model_name": manifest.model} | ({"instance": SERVER} if alert.of_server else {})
    summary = f"{manifest.model}{f' on {SERVER}' if alert.of_server else ''} {alert.summary}"
    expected = {
        "exp_labels": rule["labels"] | labels,
        "exp_annotations": {"summary": summary, "action": alert.action},
    }
    series = alert.loud if fires else alert.quiet
    asked = {"alertname": alert.name, "eval_time": AT, "exp_alerts": [expected] if fires else []}
    return {
        "name": f"{alert.name} {'fires' if fires else 'is silent'}",
        "interval": STEP,
        "input_series": [
            {"series": _series(name, manifest.model), "values": values} for name, values in series.items()
        ],
        "alert_rule_test": [asked],
    }


def _series(name: str, model: str) -> str:
    """`name` may have a label already."""
    bare, _, more = name.rstrip("}").partition("{")
    labels = [f"model_name={quoted(model)}", f'instance="{SERVER}"', *([more] if more else [])]
    return f"{bare}{{{','.join(labels)}}}"
