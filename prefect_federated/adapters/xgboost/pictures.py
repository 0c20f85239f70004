"""Pictures of what a booster goes by: gain, and the columns' shares in predictions (SHAP)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from prefect_federated.adapters.colours import COLOURS
from prefect_federated.adapters.plot import png_of
from prefect_federated.adapters.xgboost.matrix import booster
from prefect_federated.messages import Tensor, Tensors

Floats = NDArray[np.float64]

_SHOWN = 20
_NAME_LETTERS = 32
_ROW_INCHES = 0.28
_PIECE_NAMES = {0: "its mean, lowest fifth of values", -1: "its mean, highest fifth"}


@dataclass(frozen=True)
class Explained:
    """The sites' explanations, averaged by rows.

    Args:
        absolute: `(columns,)`: the mean size of what a column adds to predictions.
        signed: `(columns, pieces)`: its mean by parts of the column's values, lowest first; NaN
            where no site tells.
        rows: How many were explained.
    """

    absolute: Floats
    signed: Floats
    rows: int


def explained(replies: Iterable[Tensors]) -> Explained | None:
    """Returns the mean of the sites' explanations; None where none has enough rows."""
    told = [reply for reply in replies if reply["rows"][0] > 0]
    if not told:
        return None
    rows = np.array([reply["rows"][0] for reply in told], float)
    signed = np.array([reply["signed"] for reply in told], float)
    weights = np.array([reply["told"] for reply in told], float) * rows[:, None, None]
    total = weights.sum(axis=0)
    summed = (signed * weights).sum(axis=0)
    absolute = np.average([reply["absolute"] for reply in told], axis=0, weights=rows)
    means = np.divide(summed, total, out=np.full_like(total, np.nan), where=total > 0)
    return Explained(absolute, means, int(rows.sum()))


def gain_of(raw: Tensor) -> dict[str, float]:
    """Returns each column's mean gain over the splits that use it; those unused are left out."""
    told = booster(raw).get_score(importance_type="gain")
    return {str(name): float(np.mean(gain)) for name, gain in told.items()}


def gain_png(gain: Mapping[str, float]) -> bytes:
    """Returns bars of the columns with the highest gain, up to 20."""
    shown = sorted(gain.items(), key=lambda pair: pair[1])[-_SHOWN:]
    figure = _figure(len(shown))
    axes = figure.add_subplot()
    axes.barh([_short(name) for name, _ in shown], [g for _, g in shown], color=COLOURS[0])
    axes.set(xlabel="mean gain of a split", title="Feature importance by gain")
    axes.spines[["top", "right"]].set_visible(False)
    return png_of(figure)


def shap_png(names: Iterable[str], told: Explained) -> bytes:
    """Returns bars of the mean size of what columns add, with its mean by parts of their values.

    There are no such means of more than two classes, nor of columns with categories.
    """
    names = list(names)
    order = np.argsort(told.absolute)[-_SHOWN:]
    figure = _figure(len(order))
    axes = figure.add_subplot()
    places = np.arange(len(order))
    axes.barh(places, told.absolute[order], color="#d0d7de", label="mean size")
    pieces = told.signed.shape[1]
    has_means = np.isfinite(told.signed[order]).any()
    for piece in range(pieces if has_means else 0):
        axes.scatter(
            told.signed[order, piece], places, s=22, zorder=3,
            color=colormaps["viridis"](piece / max(pieces - 1, 1)),
            label=_PIECE_NAMES.get(piece if piece < pieces - 1 else -1),
        )  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(places, [_short(names[place]) for place in order])
    axes.set(
        xlabel="what the column adds to the margin (SHAP)"
        if has_means
        else "mean size of what the column adds to the margins (SHAP)",
        title=f"SHAP summary, {told.rows:,} test rows of the sites",
    )
    if has_means:
        figure.legend(frameon=False, fontsize="small", loc="outside lower center", ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    return png_of(figure)


def _figure(rows: int) -> Figure:
    return Figure(figsize=(7, 1.4 + _ROW_INCHES * max(rows, 1)), dpi=100, layout="constrained")


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LETTERS else f"{name[: _NAME_LETTERS - 1]}…"
