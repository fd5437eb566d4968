"""Does one request keep the scenario's limits? The rule of the report, for a row as it is made. Pure."""

from __future__ import annotations

from loadtest.records import RequestRecord
from loadtest.scenario import Limits


def violates(record: RequestRecord, limits: Limits) -> bool | None:
    """It broke a limit or did not succeed; None: cut short before it broke one. As the report judges it."""
    was_cut_short = record.outcome == "client_cancel"
    first_s = record.e2e_s if was_cut_short and record.ttft_s is None else record.ttft_s
    took = ((first_s, limits.ttft_s), (record.tpot_s, limits.tpot_s), (record.e2e_s, limits.e2e_s))
    if any(s is not None and limit_s is not None and s > limit_s for s, limit_s in took):
        return True
    return None if was_cut_short else not record.succeeded
