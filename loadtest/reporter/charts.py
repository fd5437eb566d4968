"""Four pictures of a run as inline SVG that follows the page's colours. The same rows give the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from loadtest.reporter.observation import Observation, Quantiles, Series, StageObservation
from loadtest.reporter.verdict import Verdict

INK: Final = "#010203"
"""Stands for the page's own text colour; replaced by currentColor."""
BLUE, ORANGE, GREEN, RED, GREY = "#3b82c4", "#d97b29", "#2f9e62", "#cf4b4b", "#8a8f98"
STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
FLOOR_MS: Final = 0.01
"""Shorter is drawn as this: an answer that came in one read has a TPOT of 0, and 0 has no logarithm."""
SIZE_INCHES: Final = (7.6, 3.1)
LabelSide = Literal["above", "below", "beyond"]
LABEL_PLACES: Final[Mapping[LabelSide, tuple[float, tuple[float, float]]]] = {
    "above": (0.0, (2, 2)),
    "below": (0.0, (2, -9)),
    "beyond": (1.0, (3, -3)),
}
"""Where along the line, as a share of the axes, and how far from there in points."""


def draw_charts(verdict: Verdict) -> dict[str, str]:
    """SVG text by name: concurrency, kv, queues, latency; a chart without data is left out."""
    observation = verdict.observation
    if not observation.stages:
        return {}
    charts = {"concurrency": inline_svg("concurrency", lambda axes: _concurrency(axes, verdict))}
    if observation.kv_usage:
        charts["kv"] = inline_svg("kv", lambda axes: _kv(axes, verdict))
    if observation.running:
        charts["queues"] = inline_svg("queues", lambda axes: _queues(axes, observation))
    if any(stage.ttft for stage in observation.stages):
        charts["latency"] = inline_svg("latency", lambda axes: _latency(axes, observation), panels=2)
    return charts


def inline_svg(
    name: str,
    paint: Callable[[Any], None],
    panels: int = 1,
    size_inches: tuple[float, float] = SIZE_INCHES,
    lines: int = 1,
) -> str:
    """What `paint` draws on the axes, as SVG to stand in a page: its ids and captions begin with `name`."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size_inches, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0.0)
        axes = figure.subplots(lines, panels)
        for panel in axes.flat if lines * panels > 1 else [axes]:
            panel.patch.set_alpha(0.0)
        paint(axes)
        file = io.StringIO()
        figure.savefig(
            file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return _inline(file.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Without prologue and namespaces (HTML needs neither), with ids of its own and the page's ink."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\1{name}-", svg).replace("xlink:href", "href")
    svg = svg.replace(INK, "currentColor")
    named = f'role="img" aria-labelledby="{name}-title" aria-describedby="{name}-caption"'
    return re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" {named}>', svg, count=1)


def _concurrency(axes: Axes, verdict: Verdict) -> None:
    stages, prediction = verdict.observation.stages, verdict.prediction
    at = range(len(stages))
    bars: tuple[tuple[str, str, Callable[[StageObservation], float | None]], ...] = (
        ("users set", GREY, lambda stage: float(stage.users_set) if stage.rate_per_s is None else None),
        ("in flight", BLUE, lambda stage: stage.in_flight_mean),
        ("running", GREEN, lambda stage: stage.running_mean),
        ("waiting", ORANGE, lambda stage: stage.waiting_mean),
    )
    for offset, (label, colour, value) in enumerate(bars):
        seen = [(x, height) for x, stage in enumerate(stages) if (height := value(stage)) is not None]
        if seen:  # what was not seen is left out, never drawn as zero
            places = [x + (offset - 1.5) * 0.2 for x, _ in seen]
            axes.bar(places, [height for _, height in seen], width=0.19, color=colour, label=label)
    if prediction is not None:
        guaranteed, saturation = prediction.n_guaranteed, prediction.n_saturation
        is_room_above = saturation - guaranteed >= guaranteed - verdict.n_safe
        side: LabelSide = "above" if is_room_above else "below"
        _line(axes, float(guaranteed), f"guaranteed {guaranteed}", GREEN, side)
        _line(axes, saturation, f"saturation {saturation:.1f}", RED)
    if verdict.n_safe:
        word = "signed" if verdict.status == "PASS" else "N_safe"
        _line(axes, float(verdict.n_safe), f"{word} {verdict.n_safe}", BLUE)
    axes.set_xticks(list(at), [stage.name for stage in stages])
    axes.set_ylabel("requests")
    axes.set_xlim(-0.5, len(stages) - 0.5)
    axes.set_ylim(top=1.08 * axes.get_ylim()[1])
    axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)


def _line(axes: Axes, height: float, label: str, colour: str, side: LabelSide = "beyond") -> None:
    """Its label stands at the left end, above or below the line, or beyond its right end."""
    at, offset_points = LABEL_PLACES[side]
    axes.axhline(height, color=colour, linewidth=1.2, linestyle=(0, (5, 3)))
    axes.annotate(
        label,
        xy=(at, height),
        xycoords=("axes fraction", "data"),
        xytext=offset_points,
        textcoords="offset points",
        ha="left",
        color=colour,
        fontsize=8.5,
    )


def _kv(axes: Axes, verdict: Verdict) -> None:
    observation, prediction = verdict.observation, verdict.prediction
    _stage_bands(axes, observation)
    axes.plot(*_points(observation.kv_usage), color=BLUE, linewidth=1.5, label="observed")
    if prediction is not None:
        usable, held = prediction.pool.usable_blocks_of_all, prediction.held.mean_blocks
        for window in observation.windows:
            share = min(1.0, window.users * held / usable)
            span = [(ns - observation.start_ns) / 1e9 for ns in (window.start_ns, window.end_ns)]
            label = "predicted mean" if window.index == 0 else None
            axes.plot(span, [share, share], color=ORANGE, linewidth=1.4, linestyle=(0, (5, 3)), label=label)
    axes.set_ylim(0.0, 1.05)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_ylabel("KV blocks in use")
    axes.set_xlabel("seconds")
    axes.legend(ncols=2, loc="lower right")


def _queues(axes: Axes, observation: Observation) -> None:
    _stage_bands(axes, observation)
    axes.plot(*_points(observation.running), color=GREEN, linewidth=1.5, label="running")
    axes.plot(*_points(observation.waiting), color=ORANGE, linewidth=1.5, label="waiting")
    axes.set_ylim(bottom=0.0)
    axes.set_ylabel("requests")
    axes.set_xlabel("seconds")
    axes.legend(ncols=2, loc="upper left")


def _stage_bands(axes: Axes, observation: Observation) -> None:
    for window in observation.windows:
        start, end = ((ns - observation.start_ns) / 1e9 for ns in (window.start_ns, window.end_ns))
        if window.index % 2 == 0:
            axes.axvspan(start, end, color=GREY, alpha=0.12, linewidth=0)
        axes.annotate(
            f"{window.users}",
            xy=((start + end) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
        )
    last = observation.windows[-1]
    axes.set_xlim(0.0, (last.end_ns - observation.start_ns) / 1e9)


def _points(points: Series) -> tuple[list[float], list[float]]:
    inside = [(at_s, value) for at_s, value in points if at_s >= 0]
    return [at_s for at_s, _ in inside], [value for _, value in inside]


def _latency(axes: Sequence[Axes], observation: Observation) -> None:
    limits, stages = observation.limits, observation.stages
    _quantiles(axes[0], "TTFT", [(stage.users, stage.ttft) for stage in stages], limits.ttft_s)
    _quantiles(axes[1], "TPOT", [(stage.users, stage.tpot) for stage in stages], limits.tpot_s)


def _quantiles(
    axes: Axes, name: str, points: Sequence[tuple[int, Quantiles | None]], limit_s: float | None
) -> None:
    known = [(users, quantiles) for users, quantiles in points if quantiles is not None]
    known.sort(key=lambda point: point[0])  # a search goes up and down
    users = [count for count, _ in known]
    for label, colour in (("p50", GREEN), ("p95", BLUE), ("p99", ORANGE)):
        heights = [max(getattr(quantiles, f"{label}_s") * 1000, FLOOR_MS) for _, quantiles in known]
        axes.plot(users, heights, color=colour, marker="o", markersize=3.5, linewidth=1.3, label=label)
    if limit_s is not None:
        _line(axes, limit_s * 1000, "limit", RED)
    # From a calm stage to an overloaded one is a factor of fifty: only a logarithm shows both.
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=20))
    axes.yaxis.set_major_formatter(lambda height, _: f"{height:,g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title(
        f"{name}, ms" if limit_s is None else f"{name}, ms (limit {limit_s * 1000:,g})", fontsize=10, pad=20
    )
    axes.set_xlabel("users")
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.1)
