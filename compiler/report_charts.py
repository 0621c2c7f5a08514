"""The charts of a report, as SVG text that needs nothing from the network."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wattune.errors import MissingDependencyError

INK, GRID = "#1f2933", "#d9dee4"
COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#8e5ea2", "#b7791f", "#4a5568", "#0f8b8d", "#a83279")

Points = tuple[Sequence[float], Sequence[float]]


def curves(series: Mapping[str, Sequence[float]]) -> str:
    """Draw the speed of the best schedule so far over trials; 1 is the first schedule's."""

    def draw(axes: Any) -> None:
        for name, speeds in series.items():
            axes.step(range(1, len(speeds) + 1), speeds, where="post", label=name, linewidth=1.8)
        axes.set(xlabel="trial", ylabel="speed of the best so far, default = 1")
        axes.set_ylim(bottom=min(0.95, axes.get_ylim()[0]))
        _legend(axes)

    return _svg(draw, "Tuning curves")


def predictions(
    series: Mapping[str, Points], label: str = "Predicted against measured latency"
) -> str:
    """Draw predicted over measured microseconds, with the diagonal."""

    def draw(axes: Any) -> None:
        for name, (measured, predicted) in series.items():
            axes.scatter(measured, predicted, s=14, alpha=0.75, linewidths=0, label=name)
        values = [v for points in series.values() for part in points for v in part]
        ends = (min(values) / 1.1, max(values) * 1.1)
        axes.plot(ends, ends, color=INK, linewidth=0.8, zorder=0)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        axes.set(xlabel="measured latency, us", ylabel="predicted latency, us")
        _plain_ticks(axes.xaxis, axes.yaxis)
        _legend(axes)

    return _svg(draw, label)


def front(measured: Mapping[str, Points], best: Mapping[str, Points]) -> str:
    """Draw energy over latency of all records, the non-dominated ones joined."""

    def draw(axes: Any) -> None:
        for number, (name, (latency, energy)) in enumerate(measured.items()):
            colour = COLOURS[number % len(COLOURS)]
            axes.scatter(latency, energy, s=12, alpha=0.4, linewidths=0, color=colour)
            axes.plot(*best[name], color=colour, marker="o", markersize=4, label=name)
        axes.set(xscale="log", yscale="log")
        axes.set(xlabel="latency, us", ylabel="energy per call, mJ")
        _plain_ticks(axes.xaxis, axes.yaxis)
        _legend(axes)

    return _svg(draw, "Energy against latency")


def _legend(axes: Any) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)


def _plain_ticks(*sides: Any) -> None:
    """Write 200 instead of 2 x 10^2: the values span a decade or two."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for side in sides:
        side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        side.set_minor_formatter(NullFormatter())


def _style(label: str) -> Any:
    from cycler import cycler

    texts = ("axes.labelcolor", "text.color", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(texts, INK),
        "svg.fonttype": "none",
        # Ids of one chart must not meet those of another on the same page.
        "svg.hashsalt": label,
        "font.family": "sans-serif",
        "font.size": 11,
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.edgecolor": GRID,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
    }


def _svg(draw: Callable[[Any], None], label: str) -> str:
    """Draw into an ``<svg>`` element that takes the width of the page."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "a report") from error
    with matplotlib.rc_context(_style(label)):
        # Not pyplot: no display, no global state.
        figure = Figure(figsize=(8, 5), layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    head, body = text[text.index("<svg") :].split(">", 1)
    head = re.sub(r'\s(width|height|xmlns\S*)="[^"]*"', "", head)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    return f'{head} role="img" aria-label="{label}">{body}'
