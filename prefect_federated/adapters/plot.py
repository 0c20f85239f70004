"""Pictures of a job's metrics by round, as PNG bytes. Installed with the extra `plot`.

A `Figure` without pyplot draws PNG with the Agg backend: no display, no global state, any thread.
"""

import io
import math
from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from prefect_federated.adapters.colours import BRIGHT, COLOURS, MARKERS
from prefect_federated.curves import Curve

__all__ = ["COLOURS", "MARKERS", "curves_png", "png_of"]

_DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
_BOLD = 2.4
_MEAN = "mean of all"
_MARKED = 50  # rounds up to which each has its marker
_POINTS = 500
_PANELS = 12
_PANELS_A_ROW = 3
_PANEL_INCHES = (4.2, 3.1)
_NAME_LETTERS = 24
_MARKS = 8  # on a site's line, about


def curves_png(curves: Sequence[Curve], *, title: str = "") -> bytes:
    """Returns a PNG of metrics by round: a thin line a site, a bold one for the mean over them.

    Metrics whose names end in the same word share a panel (`val_loss` and `train_loss`), where
    dashes tell them apart. About 20 kB a panel.

    Args:
        curves: What is drawn; up to 12 panels, in the order of the curves.
        title: A line above the panels.
    """
    panels: dict[str, list[Curve]] = {}
    for curve in curves:
        if curve.word in panels or len(panels) < _PANELS:
            panels.setdefault(curve.word, []).append(curve)
    sites = list(dict.fromkeys(curve.site for curve in curves if curve.site is not None))
    columns = min(max(len(panels), 1), _PANELS_A_ROW)
    rows = math.ceil(max(len(panels), 1) / columns)
    width = _PANEL_INCHES[0] * columns
    labels = [_short(site) for site in sites]
    longest = max((len(label) for label in labels), default=0)
    names_a_row = max(1, int(width / (0.5 + 0.065 * max(longest, len(_MEAN)))))
    names = len(sites) + 1 if sites else 0
    height = _PANEL_INCHES[1] * rows + 0.22 * math.ceil(names / names_a_row)
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    figure.suptitle(title)
    for place, (word, those) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set(title=word, xlabel="round")
        _draw(axes, word, those, sites)
    if sites:
        figure.legend(
            handles=[
                Line2D([], [], color="black", linewidth=_BOLD, label=_MEAN),
                *(Line2D([], [], **_style(n), label=name) for n, name in enumerate(labels)),
            ],
            loc="outside lower center", ncols=names_a_row, frameon=False, fontsize="small",
        )  # fmt: skip
    return png_of(figure)


def _draw(axes: Axes, word: str, curves: Sequence[Curve], sites: Sequence[str]) -> None:
    """Draws one panel; the means last, over the sites' lines."""
    metrics = list(dict.fromkeys(curve.metric for curve in curves))
    longest = max((len(curve.points) for curve in curves), default=0)
    for curve in sorted(curves, key=lambda curve: curve.site is None):
        number = metrics.index(curve.metric)
        points = _thinned(sorted(curve.points.items()))
        dashes = _DASHES[number % len(_DASHES)] if sites else "-"
        if curve.site is not None:
            place = sites.index(curve.site)
            every = max(1, len(points) // _MARKS)
            how = {
                **_style(place), "linewidth": 1.0, "alpha": 0.8 if number == 0 else 0.4,
                "markevery": (place % every, every),
            }  # fmt: skip
        elif sites:
            how = {"color": "black", "linewidth": _BOLD, "marker": "o" if len(points) == 1 else ""}
        else:
            how = {**_style(number), "linewidth": 1.6}
            how["markersize"] = how["markersize"] if longest <= _MARKED else 0
        axes.plot(
            [round for round, _ in points], [value for _, value in points], linestyle=dashes, **how
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if metrics != [word]:
        handles = [
            Line2D([], [], color="black", linestyle=_DASHES[n % len(_DASHES)], label=metric)
            if sites
            else Line2D([], [], **_style(n), label=metric)
            for n, metric in enumerate(metrics)
        ]
        axes.legend(handles=handles, frameon=False, fontsize="small")


def _style(number: int) -> dict[str, Any]:
    """Returns the colour and marker of the n-th of up to 42 things: no two have the same."""
    turn, colour = divmod(number, len(BRIGHT))
    return {
        "color": BRIGHT[colour],
        "marker": MARKERS[(colour + turn) % len(MARKERS)],
        "markersize": 3.5,
    }


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LETTERS else f"{name[: _NAME_LETTERS - 1]}…"


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Returns at most some hundred points, the last among them: a picture has no more."""
    step = math.ceil(len(points) / _POINTS)
    return points if step <= 1 else [*points[:-1:step], points[-1]]


def png_of(figure: Figure) -> bytes:
    """Returns a figure as a PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
