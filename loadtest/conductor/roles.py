"""What the user classes of a locustfile ask: their class attributes, checked against the server, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from estimator.errors import PlainError
from loadtest.conductor.fitting import fitted_to, words_for
from loadtest.conductor.prepare import PreparedRun, served_model
from loadtest.conductor.server_facts import read_server
from loadtest.conductor.tokenizer import Tokenizer
from loadtest.origin import read_api_key
from loadtest.scenario import Scenario, parse_scenario, read_scenario, scenario_body
from loadtest.workers.chat_user import ChatUser
from loadtest.workload.prompts import ChatWords


class RoleError(PlainError):
    """The locustfile's classes do not fit together: one sentence that names the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """The workload of one user class; `words` are one token each to the server that counted them."""

    scenario: Scenario
    model: str
    words: ChatWords | None

    def message(self) -> dict[str, Any]:
        """Plain data for a Locust message."""
        return {
            "scenario": scenario_body(self.scenario),
            "model": self.model,
            "words": None if self.words is None else dataclasses.asdict(self.words),
        }


def role_of(message: Mapping[str, Any]) -> Role:
    return Role(
        scenario=parse_scenario(message["scenario"]),
        model=message["model"],
        words=TypeAdapter(ChatWords | None).validate_python(message["words"]),
    )


def chat_classes(classes: Iterable[type[Any]]) -> list[type[ChatUser]]:
    """Those of ours; a locustfile may hold users of other kinds, which write no rows."""
    return [one for one in classes if issubclass(one, ChatUser)]


def host_of(asked: str | None, classes: Sequence[type[ChatUser]]) -> str:
    """--host, or the `host` that the classes agree on. Raises RoleError: one run loads one server."""
    hosts = {one.host for one in classes if one.host}
    if asked is None and len(hosts) > 1:
        raise RoleError(
            f"the user classes name different hosts ({', '.join(sorted(hosts))}), and one run loads one "
            "server: give --host for all of them, or make a run for each host, naming its classes"
        )
    return asked or next(iter(hosts), "")


def cast(run: PreparedRun, classes: Sequence[type[ChatUser]]) -> dict[str, Role]:
    """The role of each class by its name. Raises PlainError when the server cannot play one of them."""
    _require_served(run, {one.model for one in classes if one.model})
    roles: dict[tuple[str | None, str | None], Role] = {}
    for one in classes:
        if (one.scenario, one.model) not in roles:
            roles[one.scenario, one.model] = _role(run, one.scenario, one.model)
    return {one.__name__: roles[one.scenario, one.model] for one in classes}


def pauses(classes: Iterable[type[ChatUser]], roles: Mapping[str, Role]) -> bool:
    """Some users rest between their requests, so that fewer requests than users are in flight."""
    sessions = [role.scenario.session for role in roles.values()]
    thinks = any(session is not None and session.think_s.mean_s > 0 for session in sessions)
    return thinks or any(one.wait_time is not ChatUser.wait_time for one in classes)


def _role(run: PreparedRun, scenario_name: str | None, model: str | None) -> Role:
    origin = run.manifest.origin
    server = Tokenizer(
        origin=origin,
        key=read_api_key(variable=origin.access.api_key_variable),
        model=model or run.manifest.model,
        engine=run.manifest.engine,
    )
    scenario = run.scenario
    if scenario_name is not None:
        own = read_scenario(Path(scenario_name))
        own = replace(own, tokenizer=own.tokenizer or scenario.tokenizer)
        scenario = fitted_to(own, server, read_server(origin, server.key).models)
    return Role(scenario=scenario, model=server.model, words=words_for(scenario, server))


def _require_served(run: PreparedRun, models: set[str]) -> None:
    if models - {run.manifest.model}:
        origin = run.manifest.origin
        facts = read_server(origin, read_api_key(variable=origin.access.api_key_variable))
        for model in sorted(models):
            served_model(origin, run.manifest.engine, model, facts)
