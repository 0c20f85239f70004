"""Accuracy by round as a picture: for each line the mean over seeds, with a band around it."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prefect_federated.adapters.plot import COLOURS, MARKERS, png_of


def accuracy_png(lines: Mapping[str, Sequence[Sequence[float]]], *, title: str) -> bytes:
    """Returns a PNG with a line for each name.

    Args:
        lines: Name -> for each seed, the accuracy after each round.
        title: A line above the picture.
    """
    figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for number, (name, seeds) in enumerate(lines.items()):
        values = np.array(seeds, dtype=np.float64)  # (seeds, rounds)
        rounds = np.arange(1, values.shape[1] + 1)
        mean, spread = values.mean(axis=0), values.std(axis=0)
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            rounds,
            mean,
            label=f"{name}: {mean[-1]:.3f}",
            color=colour,
            marker=MARKERS[number % len(MARKERS)],
            markersize=3.5 if len(rounds) <= 50 else 0,
        )
        axes.fill_between(rounds, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
    axes.set(title=title, xlabel="round", ylabel="accuracy on the test images")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        axes.legend(frameon=False, title="after the last round", loc="lower right")
    return png_of(figure)
