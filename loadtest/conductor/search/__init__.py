"""Finds the limit in few minutes and proves a safe level: a pure state machine, whoever drives the load."""

from loadtest.conductor.search.course import SearchPlan
from loadtest.conductor.search.level import Cohort
from loadtest.conductor.search.machine import Command, Search
from loadtest.conductor.search.settle import has_settled

__all__ = [
    "Cohort",
    "Command",
    "Search",
    "SearchPlan",
    "has_settled",
]
