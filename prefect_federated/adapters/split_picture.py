"""A picture of how labels are spread over sites, as PNG bytes. Installed with the extra `plot`."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from prefect_federated.adapters.plot import png_of

_TEN = "tab10"  # told apart by most; beyond ten labels, neighbours on a scale
_MANY = "turbo"
_MOST_IN_LEGEND = 20
_MOST_NAMED = 40
_INCHES_A_SITE, _NARROWEST, _WIDEST = 0.32, 5.0, 13.0


def split_png(
    labels: ArrayLike,
    parts: Sequence[ArrayLike],
    *,
    names: Sequence[str] | None = None,
    title: str = "",
) -> bytes:
    """Returns a PNG with a bar for each site: its rows, stacked by label.

    Args:
        labels: One a row of the data set.
        parts: For each site, its rows, as a partitioner returns them.
        names: The sites' names; their numbers from 1 if None.
        title: A line above the bars.

    Raises:
        ValueError: there is not one name a site.
    """
    values = np.asarray(labels)
    kinds, found = np.unique(values, return_inverse=True)
    counts = np.array(
        [np.bincount(found[np.asarray(rows, int)], minlength=len(kinds)) for rows in parts]
    ).reshape(len(parts), len(kinds))  # (n_sites, n_labels)
    names = [str(number) for number in range(1, len(parts) + 1)] if names is None else names
    if len(names) != len(parts):
        raise ValueError(f"{len(names)} names for {len(parts)} sites.")
    width = min(max(_INCHES_A_SITE * len(parts), _NARROWEST), _WIDEST)
    figure = Figure(figsize=(width + 1.2, 3.6), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    if len(kinds) <= 10:
        colours = [colormaps[_TEN](number) for number in range(len(kinds))]
    else:
        colours = [colormaps[_MANY](place) for place in np.linspace(0.05, 0.95, len(kinds))]
    places, below = np.arange(len(parts)), np.zeros(len(parts))
    for number, kind in enumerate(kinds):
        axes.bar(
            places,
            counts[:, number],
            bottom=below,
            width=0.85,
            color=colours[number],
            edgecolor="white",
            linewidth=0.4 if len(parts) <= _MOST_NAMED else 0,
            label=str(kind),
        )
        below += counts[:, number]
    every = max(-(-len(parts) // _MOST_NAMED), 1)  # of many sites, not all are named
    longest = max((len(name) for name in names), default=0)
    axes.set_xticks(
        places[::every],
        [str(name) for name in names[::every]],
        rotation=90 if longest > 3 and len(parts) > 6 else 0,
    )
    axes.set(title=title, xlabel="site", ylabel="rows")
    axes.margins(x=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    handles, shown = axes.get_legend_handles_labels()
    step = -(-max(len(shown), 1) // _MOST_IN_LEGEND)
    if shown:
        figure.legend(
            handles[::step][::-1],  # as the bars are stacked
            shown[::step][::-1],
            loc="outside right upper",
            frameon=False,
            title="label",
        )
    return png_of(figure)
