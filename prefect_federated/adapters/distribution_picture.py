"""Pictures of how values lie at sites, as PNG bytes. Installed with the extra `statistics`.

A nightly job draws them, so they are drawn fast: margins and ticks are set here, instead of leaving
them to matplotlib, which measures every text several times for it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from prefect_federated.adapters.colours import BRIGHT, COLOURS
from prefect_federated.adapters.plot import png_of

_PANELS_A_ROW = 3
_PANEL_INCHES = (3.5, 2.2)
_LEGEND_INCHES = 0.4
_NAMED = 6
_LETTERS = 16
_SMALL = 8
_LETTER_INCHES = 0.075
_CELL_INCHES = (0.62, 0.24)
_SHADES = colormaps["cividis"].with_extremes(bad="#DDDDDD")


@dataclass(frozen=True)
class Panel:
    """How one column's values lie.

    Args:
        title: The column's name.
        edges: Of the bins; empty for categories.
        names: Of the categories; empty for bins.
        heights: Site -> share of its values a bin or a category, 0 to 1; NaN where withheld.
        spreads: Site -> its own edges, where they differ from `edges`.
        ends: What stands below the first and the last edge.
    """

    title: str
    edges: Sequence[float]
    names: Sequence[str]
    heights: Mapping[str, Sequence[float]]
    spreads: Mapping[str, Sequence[float]]
    ends: tuple[str, str] = ("", "")


def distributions_png(panels: Sequence[Panel], sites: Sequence[str], everyone: str) -> bytes:
    """Returns a PNG with a panel a column: a line a site, a grey area for all of them.

    Args:
        panels: What is drawn; about 8 kB each.
        sites: The sites' names, in the order of their colours.
        everyone: The name that all sites together have in the panels.
    """
    columns = min(max(len(panels), 1), _PANELS_A_ROW)
    rows = math.ceil(max(len(panels), 1) / columns)
    width, height = _PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows + _LEGEND_INCHES
    figure = Figure(figsize=(width, height), dpi=80)
    colours = {site: BRIGHT[place % len(BRIGHT)] for place, site in enumerate(sites)}
    for place, panel in enumerate(panels):
        row, column = divmod(place, columns)
        left, top = column * _PANEL_INCHES[0] + 0.5, height - row * _PANEL_INCHES[1] - 0.3
        size = (_PANEL_INCHES[0] - 0.65, _PANEL_INCHES[1] - 0.65)
        axes = figure.add_axes(
            (left / width, (top - size[1]) / height, size[0] / width, size[1] / height)
        )
        axes.set_title(_plain(panel.title, 30), fontsize=10)
        (_draw_bars if panel.names else _draw_lines)(axes, panel, colours, everyone)
        axes.spines[["top", "right"]].set_visible(False)
        highest = axes.get_ylim()[1] / 1.05  # the axis ends a little above
        axes.set_yticks([0, highest], ["0", f"{100 * highest:.0f} %"], fontsize=_SMALL)
    shown = list(colours)[:_NAMED]
    lines = [Line2D([], [], color=COLOURS[-1]), *(Line2D([], [], color=colours[s]) for s in shown)]
    names = [everyone, *(_plain(site) for site in shown)]
    figure.legend(
        lines, names, loc="lower center", ncols=len(names), frameon=False, fontsize=_SMALL
    )
    return png_of(figure)


def missing_png(columns: Sequence[str], sites: Sequence[str], shares: NDArray[np.float64]) -> bytes:
    """Returns a PNG with a row a column of the data and a column a site: percent missing.

    Args:
        columns: Names of the rows.
        sites: Names of the columns.
        shares: `(n_columns, n_sites)`, 0 to 1; NaN where it is not known.
    """
    names = [_plain(name, 24) for name in columns]
    margin = 0.2 + _LETTER_INCHES * max(map(len, names), default=0)
    across, down = _CELL_INCHES[0] * len(sites), _CELL_INCHES[1] * len(columns)
    width, height = margin + across + 0.9, down + 1.1
    figure = Figure(figsize=(width, height), dpi=80)
    axes = figure.add_axes((margin / width, 0.1 / height, across / width, max(down, 0.1) / height))
    if shares.size:
        axes.imshow(np.ma.masked_invalid(shares), cmap=_SHADES, vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        text = "" if np.isnan(share) else f"{100 * share:.0f} %"
        colour = "white" if share < 0.55 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=_SMALL)
    axes.xaxis.tick_top()
    axes.set_xticks(
        range(len(sites)), [_plain(site) for site in sites],
        rotation=35, ha="left", rotation_mode="anchor", fontsize=_SMALL,
    )  # fmt: skip
    axes.set_yticks(range(len(names)), names, fontsize=_SMALL)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return png_of(figure)


def _draw_lines(axes: Axes, panel: Panel, colours: Mapping[str, str], everyone: str) -> None:
    highest = 0.0
    for name, heights in panel.heights.items():
        edges = panel.spreads.get(name, panel.edges)
        is_all = name == everyone
        axes.stairs(
            heights,
            edges,
            color=COLOURS[-1] if is_all else colours.get(name, COLOURS[-1]),
            fill=is_all,
            alpha=0.15 if is_all else 1.0,
            linewidth=1.3,
        )
        highest = max(highest, float(np.nan_to_num(heights).max(initial=0.0)))
    axes.set_ylim(0, 1.05 * (highest or 1.0))
    axes.set_xticks([panel.edges[0], panel.edges[-1]], panel.ends, fontsize=_SMALL)


def _draw_bars(axes: Axes, panel: Panel, colours: Mapping[str, str], everyone: str) -> None:
    places = np.arange(len(panel.names))
    width = 0.85 / max(len(panel.heights), 1)
    for number, (name, heights) in enumerate(panel.heights.items()):
        colour = "#777777" if name == everyone else colours.get(name, "#777777")
        axes.bar(places + number * width - 0.425 + width / 2, heights, width, color=colour)
    letters = max(36 // max(len(panel.names), 1), 4)
    axes.set_xticks(places, [_plain(name, letters) for name in panel.names], fontsize=_SMALL)


def _plain(text: str, letters: int = _LETTERS) -> str:
    """Returns a name as it is: matplotlib reads dollars as mathematics."""
    short = text if len(text) <= letters else f"{text[: letters - 1]}…"
    return short.replace("$", r"\$")
