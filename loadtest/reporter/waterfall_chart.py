"""The waterfall as a picture: one bar a term, from the start above to the observed limit below."""

from __future__ import annotations

from typing import Final

from matplotlib.axes import Axes

from loadtest.reporter.charts import BLUE, GREEN, GREY, INK, ORANGE, RED, inline_svg
from loadtest.reporter.waterfall import Waterfall
from loadtest.reporter.waterfall_text import START, TITLES, signed

ROW_INCHES: Final = 0.3
BAR: Final = 0.62
GAP_POINTS: Final = 5
SPECIAL: Final = {"not_tried": GREY, "unexplained": ORANGE}


def draw_waterfall(waterfall: Waterfall) -> str:
    """SVG text; time runs downwards, requests to the right."""
    rows = len(waterfall.terms) + 2
    return inline_svg(
        "waterfall", lambda axes: _paint(axes, waterfall), size_inches=(7.6, 0.75 + ROW_INCHES * rows)
    )


def _paint(axes: Axes, waterfall: Waterfall) -> None:
    level, levels = float(waterfall.start), [float(waterfall.start)]
    _bar(axes, 0, 0.0, level, GREY, f"{level:,.1f}")
    for row, term in enumerate(waterfall.terms, 1):
        change = float(term.requests)
        colour = SPECIAL.get(term.name) or (GREEN if change > 0 else RED)
        _bar(axes, row, level, change, colour, signed(term.requests).replace("-", "\N{MINUS SIGN}"))
        axes.plot([level, level], [row - 1 + BAR / 2, row - BAR / 2], color=GREY, linewidth=0.8)
        level += change
        levels.append(level)
    last = len(waterfall.terms) + 1
    axes.plot([level, level], [last - 1 + BAR / 2, last - BAR / 2], color=GREY, linewidth=0.8)
    bound = "at least " if waterfall.is_lower_bound else ""
    _bar(axes, last, 0.0, float(waterfall.observed), BLUE, f"{bound}{waterfall.observed}")
    titles = [
        START[waterfall.start_name],
        *(TITLES[term.name] for term in waterfall.terms),
        "Observed",
    ]
    axes.set_yticks(range(last + 1), titles)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(last + 0.6, -0.6)
    axes.set_xlim(0.0, max(*levels, float(waterfall.observed), 1.0) * 1.14)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("requests at once")


def _bar(axes: Axes, row: int, start: float, change: float, colour: str, label: str) -> None:
    """The figure stands right of the bar, in the page's ink: it never lies on a colour."""
    axes.barh(row, change, left=start, height=BAR, color=colour)
    if not change:
        axes.plot([start, start], [row - BAR / 2, row + BAR / 2], color=GREY, linewidth=1.6)
    axes.annotate(
        label,
        xy=(max(start, start + change), row),
        xytext=(GAP_POINTS, 0),
        textcoords="offset points",
        va="center",
        color=INK,
        fontsize=9,
    )
