"""What the audit found stands in the report, and an unverified server's number is never signed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fake_run import FakeRun, FakeStage

from loadtest.access import Access
from loadtest.audit import Check
from loadtest.reporter.audit_text import access_doubts, audit_facts
from loadtest.reporter.pages import html_page, json_page, markdown_page
from loadtest.reporter.saturation import observe
from loadtest.reporter.verdict import Verdict, judge
from loadtest.run_folder import Manifest, RunFolder

KV_WALL = FakeStage(users=61, running=40.6, waiting=20.4, kv_usage_ratio=0.99, preemptions=26, e2e_s=7.0)
RUN = FakeRun(stages=(FakeStage(users=24), FakeStage(users=31), KV_WALL))
SLOW = FakeRun(stages=(FakeStage(users=4, ttft_s=3.0),))
INSECURE = Access(insecure=True)


def over_tls(run: FakeRun, access: Access) -> Manifest:
    return replace(run.manifest, host="https://llm.example:8443", access=access)


def judged(run: FakeRun, manifest: Manifest) -> Verdict:
    return judge(run.prediction, observe(run.rows(), manifest, run.slots))


def test_a_number_of_an_unverified_server_is_not_signed_however_well_it_did() -> None:
    assert judged(RUN, over_tls(RUN, Access())).status == "PASS"
    verdict = judged(RUN, over_tls(RUN, INSECURE))
    assert (verdict.status, verdict.exit_code) == ("INCONCLUSIVE", 4)
    assert "who answered" in verdict.reason


def test_a_server_that_fails_fails_verified_or_not() -> None:
    assert judged(SLOW, over_tls(SLOW, INSECURE)).status == "FAIL"


def test_insecure_means_nothing_where_there_is_no_certificate() -> None:
    plain = replace(RUN.manifest, access=INSECURE)
    assert access_doubts(plain) == ()
    assert judged(RUN, plain).status == "PASS"


def test_every_page_says_that_the_server_was_not_verified() -> None:
    manifest = over_tls(RUN, INSECURE)
    verdict = judged(RUN, manifest)
    assert "NOT VERIFIED" in html_page(verdict, manifest, "runs/x")
    assert "NOT VERIFIED" in markdown_page(verdict, manifest, "runs/x")
    assert '"is_unverified": true' in json_page(verdict, manifest)


def test_cautions_and_what_the_client_can_carry_are_told() -> None:
    checks = (
        Check(name="load", level="amber", said="9 runnable tasks", fix="end them"),
        Check(name="steal", level="ok", said="0%"),
        Check(name="echo", level="ok", said="90,000 chunks/s", figures={"chunks_per_cpu_s": 90_000.0}),
    )
    manifest = replace(RUN.manifest, audit=checks)
    assert audit_facts(manifest) == [
        ("caution", "load: 9 runnable tasks; end them"),
        ("client", "90,000 chunks/s"),
    ]
    assert audit_facts(RUN.manifest) == [("audit", "none was made before the load")]


def test_access_and_audit_survive_the_manifests_file(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "run")
    access = Access(ca_file="/etc/ca.pem", insecure=True, api_key_variable="TEAM_KEY")
    check = Check(name="echo", level="amber", said="s", fix="f", figures={"chunks_per_s": 1.5})
    manifest = replace(over_tls(RUN, access), audit=(check,), users_cap=7)
    folder.write_manifest(manifest)
    again = folder.read_manifest()
    assert again == manifest
    assert again.origin.access == access


@pytest.mark.parametrize("field", ["access", "users_cap", "audit"])
def test_a_manifest_of_before_is_still_read(tmp_path: Path, field: str) -> None:
    folder = RunFolder.create(tmp_path, "run")
    folder.write_manifest(RUN.manifest)
    path = folder.root / "manifest.json"
    body = json.loads(path.read_text(encoding="utf-8"))
    del body[field]
    path.write_text(json.dumps(body), encoding="utf-8")
    assert folder.read_manifest() == RUN.manifest
