"""A soak in small pictures: every quantity's blocks by the hour, as SVG that follows the page's colours."""

from __future__ import annotations

import math
from typing import Any, Final

from loadtest.reporter.charts import BLUE, ORANGE, inline_svg
from loadtest.reporter.drift import DriftReport, QuantityDrift
from loadtest.reporter.drift_text import amount
from loadtest.reporter.plain import one_line

COLUMNS: Final = 3
PANEL_INCHES: Final = (2.55, 1.5)
TITLE_CHARACTERS_MAX: Final = 34


def draw_drift(report: DriftReport) -> str:
    """Empty where no quantity has two points."""
    shown = [drift for drift in report.quantities if len(drift.points) > 1]
    if not shown:
        return ""
    lines = math.ceil(len(shown) / COLUMNS)
    size = (PANEL_INCHES[0] * COLUMNS, PANEL_INCHES[1] * lines)

    def paint(axes: Any) -> None:
        for panel, drift in zip(axes.flat, shown, strict=False):
            _panel(panel, drift)
        for panel in list(axes.flat)[len(shown) :]:
            panel.set_axis_off()

    return inline_svg("drift", paint, panels=COLUMNS, lines=lines, size_inches=size)


def _panel(axes: Any, drift: QuantityDrift) -> None:
    colour = ORANGE if drift.status == "drifts" else BLUE
    hours, values = zip(*drift.points, strict=True)
    axes.plot(hours, values, color=colour, linewidth=1.2, marker="o", markersize=2.5)
    low, high = min(values), max(values)
    middle = (low + high) / 2
    room = max((high - low) * 0.6, abs(middle) * 0.05, 1e-9)  # noise of a steady line is no mountain
    axes.set_ylim(max(middle - room, 0.0) if low >= 0 else middle - room, middle + room)
    axes.locator_params(nbins=4)
    if low == high:
        axes.set_yticks([middle])
    axes.yaxis.set_major_formatter(lambda value, _: amount(value, drift.quantity.unit))
    axes.set_title(one_line(_title(drift)), fontsize=9, loc="left")
    axes.tick_params(labelsize=8)


def _title(drift: QuantityDrift) -> str:
    if drift.quantity.source != "client":  # most soaks have one server
        return drift.quantity.title
    return f"{drift.quantity.title} ({drift.where})"[:TITLE_CHARACTERS_MAX]
