"""The preflight finds what is wrong before anything is sent or written."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from pages_served import handled_by

from estimator.spec import Lengths
from loadtest.access import USERS_CAP
from loadtest.audit import Check, Level
from loadtest.conductor.prepare import (
    Audit,
    PreflightError,
    PreparedRun,
    RunRequest,
    open_prepared,
    prepare_run,
)
from loadtest.origin import parse_origin
from loadtest.scenario import Scenario, Stage

FIXTURES = Path(__file__).parents[2] / "fixtures"
VLLM_PAGE = (FIXTURES / "metrics/vllm-0.32-idle.txt").read_bytes()  # 512 blocks of 32, max_model_len 2048
Page = tuple[int, bytes, Mapping[str, str]]


def a_page(body: bytes, status: int = 200, **headers: str) -> Page:
    return status, body, headers


def models(*names: str, max_model_len: int | None = 2048) -> Page:
    entries = [{"id": name, "object": "model", "max_model_len": max_model_len} for name in names]
    return a_page(json.dumps({"object": "list", "data": entries}).encode())


A_SERVER: Mapping[str, Page] = {
    "/v1/models": models("tiny"),
    "/version": a_page(b'{"version":"0.32.0"}'),
    "/metrics": a_page(VLLM_PAGE),
}


@contextmanager
def serving(pages: Mapping[str, Page]) -> Iterator[tuple[str, list[str]]]:
    """A server of fixed pages; yields its base URL and the Authorization headers it was sent."""
    keys: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers.get("Authorization", ""))
            status, body, headers = pages.get(self.path, a_page(b"", 404))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    with handled_by(Handler) as url:
        yield url, keys


def a_scenario(output_tokens: int = 256, *, stage: Stage | None = None) -> Scenario:
    return Scenario(
        name="test",
        input_tokens=Lengths.constant(256),
        output_tokens=Lengths.constant(output_tokens),
        stages=(stage or Stage(of="guaranteed", ratio=1.0, hold_s=9.0),),
    )


def prepared(
    pages: Mapping[str, Page],
    runs: Path,
    *,
    scenario: Scenario | None = None,
    model: str | None = None,
    users_max: int | None = None,
    users_cap: int = USERS_CAP,
    audit: Audit | None = None,
) -> PreparedRun:
    with serving(pages) as (url, _):
        return prepare_run(
            RunRequest(
                origin=parse_origin(url),
                scenario=scenario or a_scenario(),
                engine="vllm",
                runs_root=runs,
                model=model,
                users_max=users_max,
                users_cap=users_cap,
            ),
            audit,
        )


def refusal(pages: Mapping[str, Page], runs: Path, **options: object) -> PreflightError:
    with pytest.raises(PreflightError) as caught:
        prepared(pages, runs, **options)  # type: ignore[arg-type]
    assert not list(runs.iterdir()), "a refused run leaves nothing behind"
    return caught.value


def test_a_running_vllm_is_predicted_from_its_own_metrics(tmp_path: Path) -> None:
    run = prepared(A_SERVER, tmp_path)
    assert run.prediction is not None
    assert (run.prediction.n_guaranteed, run.prediction.pool.usable_blocks) == (31, 511)
    assert run.manifest.stages[0].users == 31
    assert run.manifest.model == "tiny"
    assert run.manifest.versions["server"] == "0.32.0"
    assert run.manifest.server["num_gpu_blocks"] == "512"


def test_what_was_prepared_is_read_back_by_another_process(tmp_path: Path) -> None:
    run = prepared(A_SERVER, tmp_path)
    again = open_prepared(run.folder.root)
    assert (again.manifest, again.prediction, again.scenario) == (run.manifest, run.prediction, run.scenario)


def test_two_runs_in_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    first, second = prepared(A_SERVER, tmp_path), prepared(A_SERVER, tmp_path)
    assert first.folder.root != second.folder.root


def test_an_unreachable_host_is_exit_3(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    request = RunRequest(origin=parse_origin(url), scenario=a_scenario(), engine="vllm", runs_root=tmp_path)
    with pytest.raises(PreflightError, match=r"cannot reach .*start the server or correct --host") as caught:
        prepare_run(request)
    assert caught.value.exit_code == 3
    assert not list(tmp_path.iterdir())


def test_a_model_the_server_does_not_serve_is_refused_with_what_it_serves(tmp_path: Path) -> None:
    error = refusal(A_SERVER, tmp_path, model="qwen")
    assert "does not serve 'qwen'; it serves tiny" in str(error)
    assert error.exit_code == 2


def test_a_server_of_several_models_asks_for_one(tmp_path: Path) -> None:
    several = {**A_SERVER, "/v1/models": models("base", "adapter")}
    assert "serves base, adapter: name one with --model" in str(refusal(several, tmp_path))
    assert prepared(several, tmp_path, model="adapter").manifest.model == "adapter"


def test_a_length_beyond_max_model_len_is_refused_before_the_server_clips_it(tmp_path: Path) -> None:
    error = refusal(A_SERVER, tmp_path, scenario=a_scenario(1793))
    assert "can reach 2049 tokens, but tiny serves at most 2048" in str(error)
    assert prepared(A_SERVER, tmp_path, scenario=a_scenario(1792)).prediction is not None


def test_a_server_of_the_other_engine_names_the_flag(tmp_path: Path) -> None:
    page = b'lmdeploy:num_requests_running{model_name="m"} 0.0\n'
    error = refusal({**A_SERVER, "/metrics": a_page(page)}, tmp_path)
    assert "is a lmdeploy server: use --engine lmdeploy" in str(error)


def test_without_metrics_shares_are_refused_and_users_still_work(tmp_path: Path) -> None:
    bare = {**A_SERVER, "/metrics": a_page(b"", 404)}
    assert "--model-config and --gpu" in str(refusal(bare, tmp_path))
    run = prepared(bare, tmp_path, scenario=a_scenario(stage=Stage(users=5, hold_s=9.0)))
    assert (run.prediction, run.manifest.stages[0].users) == (None, 5)


def test_a_person_who_gives_users_needs_no_stages(tmp_path: Path) -> None:
    bare = {**A_SERVER, "/metrics": a_page(b"", 404)}
    assert prepared(bare, tmp_path, users_max=32).manifest.stages == ()


def test_a_refused_key_says_where_the_key_goes(tmp_path: Path) -> None:
    assert "set ULLAGE_API_KEY" in str(refusal({"/v1/models": a_page(b"", 401)}, tmp_path))


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    moved = a_page(b"", 307, Location="http://127.0.0.1:1/v1/models")
    assert "answered 307" in str(refusal({**A_SERVER, "/v1/models": moved}, tmp_path))


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": 3}', b'{"data": [4]}'])
def test_a_page_that_is_no_model_list_is_refused(body: bytes, tmp_path: Path) -> None:
    assert "not an OpenAI model list" in str(refusal({**A_SERVER, "/v1/models": a_page(body)}, tmp_path))


def test_a_model_name_that_would_steer_a_terminal_is_refused(tmp_path: Path) -> None:
    hostile = {**A_SERVER, "/v1/models": models("tiny\x1b[2J")}
    error = refusal(hostile, tmp_path)
    assert "control characters" in str(error)
    assert str(error).isprintable()


def test_a_version_that_would_steer_a_terminal_is_made_inert(tmp_path: Path) -> None:
    hostile = {**A_SERVER, "/version": a_page(b'{"version":"0.32\\u001b[2J"}')}
    assert prepared(hostile, tmp_path).manifest.versions["server"].isprintable()


def test_more_users_than_file_descriptors_are_refused(tmp_path: Path) -> None:
    error = refusal(A_SERVER, tmp_path, users_max=10**9, users_cap=10**9)
    assert "raise ulimit -n" in str(error)


def test_more_users_than_the_cap_are_refused_wherever_they_come_from(tmp_path: Path) -> None:
    error = refusal(A_SERVER, tmp_path, users_max=5_001)
    assert "cap of 5,000" in str(error)
    assert error.exit_code == 2
    error = refusal(A_SERVER, tmp_path, scenario=a_scenario(stage=Stage(users=5_001, hold_s=9.0)))
    assert "cap of 5,000" in str(error)
    assert "cap of 30" in str(refusal(A_SERVER, tmp_path, users_cap=30)), "31 fit, by the prediction"


def a_check(level: Level, name: str = "echo", exit_code: int = 2) -> Check:
    return Check(name=name, level=level, said="the figure", fix="the fix", exit_code=exit_code)


def test_a_red_check_stops_the_run_with_its_sentence(tmp_path: Path) -> None:
    checks = (a_check("ok"), a_check("red", "ports"), a_check("red", "answer", 3), a_check("amber"))
    error = refusal(A_SERVER, tmp_path, audit=lambda plan, key: checks)
    assert str(error) == "ports: the figure; the fix; answer: the figure; the fix"
    assert error.exit_code == 3


def test_what_is_not_red_is_kept_in_the_manifest(tmp_path: Path) -> None:
    checks = (a_check("ok"), a_check("amber"), a_check("skipped"))
    run = prepared(A_SERVER, tmp_path, audit=lambda plan, key: checks)
    assert open_prepared(run.folder.root).manifest.audit == checks


def test_the_audit_knows_the_most_users_there_will_be(tmp_path: Path) -> None:
    seen: list[int] = []
    prepared(A_SERVER, tmp_path, audit=lambda plan, key: seen.append(plan.users_max) or ())
    assert seen == [31]


def test_a_cache_of_several_groups_is_not_guessed_at(tmp_path: Path) -> None:
    hybrid = VLLM_PAGE.replace(b'kv_cache_size_tokens="16384"', b'kv_cache_size_tokens="9000"')
    assert "no KV cache of one group" in " ".join(
        str(refusal({**A_SERVER, "/metrics": a_page(hybrid)}, tmp_path)).split()
    )
