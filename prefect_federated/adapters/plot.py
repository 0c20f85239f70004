"""Pictures of a job's metrics by round, as PNG bytes. Installed with the extra `plot`.

A `Figure` without pyplot draws PNG with the Agg backend: no display, no global state, any thread.
"""

import io
import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito 2008: told apart by colour-blind readers; the markers tell them apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
_PANELS_A_ROW = 3


def curves_png(
    rounds: Sequence[int], series: Mapping[str, Sequence[float]], *, title: str = ""
) -> bytes:
    """Returns a PNG of metrics by round, about 15 kB a panel.

    Metrics whose names end in the same word share a panel: `loss` and `train_loss`, `accuracy` and
    `test_accuracy`.

    Args:
        rounds: The rounds, counted from 1; may be empty.
        series: Metric -> one value a round; `nan` leaves a gap.
        title: A line above the panels.

    Raises:
        ValueError: a series has not one value a round.
    """
    panels: dict[str, list[str]] = {}
    for name, values in series.items():
        if len(values) != len(rounds):
            raise ValueError(f"metric {name!r} has {len(values)} values for {len(rounds)} rounds.")
        panels.setdefault(name.rpartition("_")[2], []).append(name)
    columns = min(max(len(panels), 1), _PANELS_A_ROW)
    rows = math.ceil(max(len(panels), 1) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows), dpi=100, layout="constrained")
    figure.suptitle(title)
    for place, (word, names) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        for number, name in enumerate(names):
            axes.plot(
                rounds,
                series[name],
                label=name,
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=3.5 if len(rounds) <= 50 else 0,
                linewidth=1.6,
            )
        axes.set(title=word, xlabel="round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if names != [word]:
            axes.legend(frameon=False)
    return png_of(figure)


def png_of(figure: Figure) -> bytes:
    """Returns a figure as a PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
