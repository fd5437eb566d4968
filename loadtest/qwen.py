"""Loads a vLLM server as the scenario says. Copy and edit.

locust -f loadtest/qwen.py --host http://127.0.0.1:8000
"""

from locust import events

from loadtest.conductor.hooks import install
from loadtest.conductor.ramp import ScenarioRamp
from loadtest.workers.chat_user import ChatUser

install(events, engine="vllm")


class QwenUser(ChatUser):
    """Asks one streaming question after the other. More classes, each with a `model`, may stand beside it."""


class Ramp(ScenarioRamp):
    """The scenario's stages; -u on the command line goes before them."""
