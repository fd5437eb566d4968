"""The load's shape for Locust: a thin shell over the run's plan, ticked where the load is decided."""

from __future__ import annotations

from typing import Protocol

from locust import LoadTestShape

from loadtest.run_folder import PlannedStage


class Lead(Protocol):
    """Who decides the load; the hooks put it here when Locust has started."""

    @property
    def is_open(self) -> bool:
        """True from `begin` until the run was stopped, whoever stopped it."""

    def begin(self) -> bool:
        """Opens the run before its first tick; False when it cannot start and said why."""

    def stage(self, elapsed_s: float) -> PlannedStage | None:
        """None when the plan is over; requests in flight are then still answered."""


class ScenarioRamp(LoadTestShape):
    """The scenario's stages, or the users a person asked for (-u, or the form of the web page)."""

    abstract = True
    use_common_options = True
    lead: Lead | None = None

    def tick(self) -> tuple[int, float] | None:
        if self.lead is None:
            return None
        if not self.lead.is_open:  # the web page may have stopped one run and started another
            if not self.lead.begin():
                return None
            self.reset_time()
        stage = self.lead.stage(self.get_run_time())
        return None if stage is None else (stage.users, stage.spawn_rate_per_s)
