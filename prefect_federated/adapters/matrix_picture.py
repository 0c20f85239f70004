"""A picture of how each model does at each site, as PNG bytes. Installed with the extra `plot`."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from prefect_federated.adapters.plot import png_of

SHOWN = 16
"""Sites that a picture shows at most; of models, one more."""

# Even in lightness, so also for the colour-blind and in grey.
_COLOURS = colormaps["cividis"].with_extremes(bad="#DDDDDD")


def matrix_png(
    metric: str,
    models: Sequence[str],
    sites: Sequence[str],
    values: NDArray[np.float64],
    own: Sequence[tuple[int, int]] = (),
) -> bytes:
    """Returns a PNG with a row a model and a column a site, the number in each cell.

    Of more than 16 sites the first 16 are shown, and the first 17 models; the title says so.

    Args:
        metric: The metric's name.
        models: Names of the rows.
        sites: Names of the columns.
        values: `(n_models, n_sites)`, float64; NaN where there is no value.
        own: Cells, by row and column, of a model at the site that trained it: they get a frame.

    Raises:
        ValueError: the shape of `values` is not that.
    """
    if values.shape != (len(models), len(sites)):
        raise ValueError(
            f"{len(models)} models and {len(sites)} sites have no {values.shape} values."
        )
    is_part = len(models) > SHOWN + 1 or len(sites) > SHOWN
    models, sites, values = models[: SHOWN + 1], sites[:SHOWN], values[: SHOWN + 1, :SHOWN]
    rows, columns = max(len(models), 1), max(len(sites), 1)
    figure = Figure(figsize=(2.8 + 0.72 * columns, 1.6 + 0.5 * rows), dpi=100, layout="constrained")
    part = f" (the first {len(models)} models and {len(sites)} sites)" if is_part else ""
    axes = figure.add_subplot(title=f"{metric}{part}", xlabel="at the data of", ylabel="model of")
    if not values.size:
        return png_of(figure)
    masked = np.ma.masked_invalid(values)
    image = axes.imshow(masked, cmap=_COLOURS, aspect="auto")
    shades = np.asarray(image.to_rgba(masked))
    axes.set_xticks(range(columns), sites, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(rows), models)
    for (row, column), value in np.ndenumerate(values):
        colour = _readable(shades[row, column])
        axes.text(column, row, _text(value), ha="center", va="center", color=colour, fontsize=9)
    for row, column in own:
        if row < rows and column < columns:
            corner = (column - 0.47, row - 0.46)
            axes.add_patch(Rectangle(corner, 0.94, 0.92, fill=False, edgecolor="#D55E00", lw=2))
    axes.spines[:].set_visible(False)
    if np.isfinite(values).any():
        figure.colorbar(image, ax=axes, label=metric)
    return png_of(figure)


def _text(value: float) -> str:
    if not np.isfinite(value):
        return "none"
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def _readable(background: NDArray[np.float64]) -> str:
    """Returns black or white, whichever has more contrast (WCAG 2's relative luminance)."""
    rgb = background[:3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return "black" if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else "white"
