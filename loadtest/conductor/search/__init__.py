"""Finds the limit in few minutes and proves a safe level: a pure state machine, whoever drives the load."""

from loadtest.conductor.search.course import Probe, SearchPlan
from loadtest.conductor.search.level import Choice, Cohort, Finding
from loadtest.conductor.search.machine import Command, Search, SearchResult
from loadtest.conductor.search.settle import has_settled

__all__ = [
    "Choice",
    "Cohort",
    "Command",
    "Finding",
    "Probe",
    "Search",
    "SearchPlan",
    "SearchResult",
    "has_settled",
]
