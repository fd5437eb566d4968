"""`ullage rules`: the rules of a signed run hold its numbers, and Prometheus' own tool agrees."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from fake_folder import write_run
from fake_run import FakeRun, FakeStage, verdict_of

from loadtest.cli import main
from loadtest.reporter.rule_tests import rules_test_yaml
from loadtest.reporter.rules import NothingSignedError, rules_yaml

STAGES = (
    FakeStage(users=20, ttft_s=0.2),
    FakeStage(users=30, ttft_s=0.2),
    FakeStage(users=44, preemptions=5, kv_usage_ratio=1.0),
)
RUN = FakeRun(stages=STAGES)
AWKWARD = 'org/a "model"\\ with {{ braces }}'
PROMTOOL = shutil.which("promtool")
with_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool: apt-get install prometheus")


def ullage_rules(run: Path) -> Result:
    return CliRunner().invoke(main, ["rules", str(run)])


def groups(text: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def test_the_limits_are_those_that_were_signed() -> None:
    records = {
        rule["record"]: rule for rule in groups(rules_yaml(verdict_of(RUN), RUN.manifest)) if "record" in rule
    }
    assert {name: rule["expr"] for name, rule in records.items()} == {
        "llm_loadtest:safe_limit_concurrency:signed": "vector(24)",
        "llm_loadtest:observed_max_concurrency:signed": "vector(30)",
        "llm_loadtest:predicted_max_concurrency:signed": "vector(31)",
    }
    for rule in records.values():
        assert rule["labels"] == {"model_name": "tiny", "run_id": RUN.manifest.run_id}


def test_the_comments_say_what_to_set() -> None:
    head = rules_yaml(verdict_of(RUN), RUN.manifest)
    assert "at most 24 requests at once" in head
    assert "--max-num-seqs 30 " in head  # the smaller of 31 guaranteed and 30 that held
    lmdeploy = rules_yaml(verdict_of(RUN), dataclasses.replace(RUN.manifest, engine="lmdeploy"))
    assert "--max-batch-size 30 " in lmdeploy


def test_lmdeploy_counts_no_preemptions_so_nothing_waits_for_them() -> None:
    lmdeploy = rules_yaml(verdict_of(RUN), dataclasses.replace(RUN.manifest, engine="lmdeploy"))
    assert "Preemption" not in lmdeploy
    assert "vllm:" not in lmdeploy
    assert "Preemption" in rules_yaml(verdict_of(RUN), RUN.manifest)


def test_a_run_without_a_latency_limit_has_no_alert_on_one() -> None:
    free = dataclasses.replace(RUN, limits=dataclasses.replace(RUN.limits, ttft_s=None))
    assert "Ttft" in rules_yaml(verdict_of(RUN), RUN.manifest)
    assert "Ttft" not in rules_yaml(verdict_of(free), free.manifest)


def test_a_run_that_signed_nothing_gets_no_rules(tmp_path: Path) -> None:
    failed = FakeRun(stages=(FakeStage(users=20, preemptions=5),))
    with pytest.raises(NothingSignedError, match="signs no number"):
        rules_yaml(verdict_of(failed), failed.manifest)
    root = write_run(failed, tmp_path, "failed")
    done = ullage_rules(root)
    assert done.exit_code == verdict_of(failed).exit_code == 1
    assert not (root / "rules.yml").exists()


@with_promtool
@pytest.mark.parametrize("engine", ["vllm", "lmdeploy"])
@pytest.mark.parametrize("model", ["tiny", AWKWARD])
def test_promtool_fires_each_alert_above_its_number_and_none_below(
    tmp_path: Path, engine: str, model: str
) -> None:
    root = write_run(dataclasses.replace(RUN, model=model), tmp_path, "signed", engine=engine)
    done = ullage_rules(root)
    assert done.exit_code == 0, done.output
    check = promtool("test", "rules", str(root / "rules_test.yml"))
    assert check.returncode == 0, check.stdout + check.stderr


@with_promtool
def test_the_tests_notice_a_number_that_is_not_the_signed_one(tmp_path: Path) -> None:
    verdict = verdict_of(RUN)
    text = rules_yaml(verdict, RUN.manifest)
    tests = tmp_path / "rules_test.yml"
    tests.write_text(rules_test_yaml(verdict, RUN.manifest, "rules.yml"), "utf-8")
    for right, wrong in (
        ("> 24", "> 25"),
        ("> 24", "> 23"),
        ("<= 24", "<= 25"),
        ("vector(24)", "vector(25)"),
    ):
        assert text.count(right) == 1
        (tmp_path / "rules.yml").write_text(text.replace(right, wrong), "utf-8")
        assert promtool("test", "rules", str(tests)).returncode != 0, f"{right} -> {wrong}"


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *words], capture_output=True, text=True, timeout=60, check=False)
