"""What a load process opens for a run and closes after it: its rows, its desk for the users, its pulse."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import gevent
from locust.runners import Runner

from loadtest.conductor.prepare import PreparedRun
from loadtest.conductor.pulse import PROBE_S, Pulse
from loadtest.conductor.server_facts import Answer, ServerError, ask
from loadtest.origin import ApiKey, Origin, parse_origin, read_api_key
from loadtest.row_file import RowFileError
from loadtest.scenario import ScenarioError
from loadtest.workers.desk import Desk, reception
from loadtest.workers.prompts import ChatWords, Messages, calibrate, check_room

SAMPLE_S = 1.0


class Station:
    """Opened after Locust has forked. `give_up` is called with one sentence when rows cannot be kept."""

    def __init__(
        self,
        run: PreparedRun,
        worker: int,
        chat: ChatWords | None,
        runner: Runner,
        give_up: Callable[[str], None],
    ) -> None:
        self._runner = runner
        self._samples = run.folder.samples_writer(f"client-w{worker:02d}")
        self._desk = Desk(
            run_id=run.manifest.run_id,
            worker=worker,
            origin=parse_origin(run.manifest.host),
            key=read_api_key(),
            model=run.manifest.model,
            scenario=run.scenario,
            rows=run.folder.records_writer(worker),
            chat=chat,
            give_up=give_up,
        )
        self._pulse = Pulse(worker)
        self._greenlets = [gevent.spawn(self._probe), gevent.spawn(self._beat)]
        reception.open(self._desk)

    def turn_away(self) -> None:
        """No desk for users that come now: a master that loses a worker sends its users to another one."""
        reception.close()

    def close(self) -> None:
        self.turn_away()
        gevent.killall(self._greenlets)
        for rows in (self._desk.rows, self._samples):
            rows.sync()
            rows.close()

    def _probe(self) -> None:
        while True:
            due_ns = self._desk.clock() + int(PROBE_S * 1e9)
            gevent.sleep(PROBE_S)
            self._pulse.probed(due_ns)

    def _beat(self) -> None:
        """Once a second: a sample of this process, and the rows pushed to the disk in a thread."""
        pool = gevent.get_hub().threadpool
        while True:
            gevent.sleep(SAMPLE_S)
            users = self._runner.user_count
            try:
                self._samples.append(self._pulse.sample(users=users, in_flight=self._desk.in_flight))
                pool.apply(self._desk.rows.sync)
            except (RowFileError, OSError) as error:
                self._desk.give_up(str(error))
                return


def chat_words(run: PreparedRun) -> ChatWords | None:
    """Words of one token each on this server; None for token prompts. Raises PlainError if there are too few.

    Asks the server some 200 times, so the process that decides the load does it once for all.
    """
    if run.scenario.endpoint != "chat":
        if run.manifest.engine == "lmdeploy":  # it would take each token id for a prompt of its own
            raise ScenarioError("LMDeploy takes no token ids as a prompt: set endpoint: chat in the scenario")
        check_room(run.scenario, None)
        return None
    origin, key = parse_origin(run.manifest.host), read_api_key()

    def tokenize(messages: Messages) -> int:
        return _count_tokens(origin, key, run.manifest.model, run.manifest.engine, messages)

    words = calibrate(tokenize)
    check_room(run.scenario, words)
    return words


def _count_tokens(origin: Origin, key: ApiKey | None, model: str, engine: str, messages: Messages) -> int:
    """vLLM: /tokenize. LMDeploy: /v1/encode, which applies the chat template when asked to."""
    path, body, field = _token_question(model, engine, messages)
    answer = ask(origin, path, key, body=body)
    try:
        count = json.loads(answer.body)[field]
    except (ValueError, KeyError, TypeError) as error:
        raise _no_tokens(origin, path, answer) from error
    if answer.status != 200 or not isinstance(count, int):
        raise _no_tokens(origin, path, answer)
    return count


def _token_question(model: str, engine: str, messages: Messages) -> tuple[str, Mapping[str, Any], str]:
    if engine == "lmdeploy":
        return "/v1/encode", {"input": messages[0]["content"], "do_preprocess": True}, "length"
    return "/tokenize", {"model": model, "messages": messages}, "count"


def _no_tokens(origin: Origin, path: str, answer: Answer) -> ServerError:
    return ServerError(
        f"{origin}{path} answered {answer.status} and counts no tokens, so chat prompts cannot be exact: "
        "use endpoint: completions"
    )
