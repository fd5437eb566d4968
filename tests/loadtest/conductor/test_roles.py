"""What the classes of a locustfile ask, as data. Locust patches who imports it, hence another process."""

from __future__ import annotations

import os
import subprocess
import sys

from locust_process import REPOSITORY

ROLES = """
import json
from estimator.spec import Lengths
from loadtest.conductor.roles import Role, RoleError, chat_classes, host_of, role_of
from loadtest.scenario import Scenario, Stage
from loadtest.workers.chat_user import ChatUser
from loadtest.workload.prompts import ChatWords
from locust import HttpUser

def named(name, host=None):
    return type(name, (ChatUser,), {"host": host})

here, there = named("Here", "http://a:1"), named("There", "http://b:1")
assert chat_classes([here, HttpUser, there]) == [here, there]
assert host_of(None, [here, named("Silent")]) == "http://a:1"
assert host_of("http://c:1", [here, there]) == "http://c:1", "--host goes before"
assert host_of(None, [named("Silent")]) == ""
try:
    host_of(None, [here, there])
except RoleError as error:
    assert "http://a:1, http://b:1" in str(error) and "--host" in str(error)
else:
    raise AssertionError("one run loads one server")

lengths = Lengths.constant(100)
scenario = Scenario(
    name="s",
    endpoint="chat",
    input_tokens=lengths,
    output_tokens=lengths,
    stages=(Stage(users=1, hold_s=9.0),),
)
for words in (None, ChatWords(words=("a", "b"), overhead_tokens=3)):
    role = Role(scenario=scenario, model="m", words=words)
    assert role_of(json.loads(json.dumps(role.message()))) == role, "the same on the other side"
"""


def test_classes_become_roles_that_travel_to_the_workers() -> None:
    environ = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    done = subprocess.run([sys.executable, "-c", ROLES], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
