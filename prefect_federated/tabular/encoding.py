"""Features as numbers, encoded alike at every site: imputation, scaling, one column a category.

Means and variances come from the federation's own sums, merged pairwise; categories are those that
the sites have named. A missing number becomes the mean, a missing category 0 in all its columns.

Source: Chan, Golub, LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances", equations 2.1a and 2.1b.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from prefect_federated.executors import Site
from prefect_federated.messages import JsonValue, Tensor, Update
from prefect_federated.tabular.access import own_small_cell
from prefect_federated.tabular.answers import numbers_in
from prefect_federated.tabular.rows import Part, load_rows, schema_in
from prefect_federated.tabular.schema import Feature, Schema

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
_NAMES = ("count", "mean", "m2")


@dataclass(frozen=True)
class Encoding:
    """How features become columns of numbers.

    Args:
        features: The features, in order.
        fill: Name -> what stands for a missing number.
        mean: Name -> what is subtracted from a number.
        scale: Name -> what it is divided by; above 0.
    """

    features: tuple[Feature, ...]
    fill: Mapping[str, float]
    mean: Mapping[str, float]
    scale: Mapping[str, float]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names: a feature's, or "feature=category"."""
        names = []
        for feature in self.features:
            if feature.kind == "categorical":
                names += [f"{feature.name}={category}" for category in feature.categories]
            else:
                names.append(feature.name)
        return tuple(names)

    def transform(self, features: "pd.DataFrame") -> Floats:
        """Returns the features as `(rows, columns)`, float64, in the order of `names`."""
        columns: list[Floats] = []
        for feature in self.features:
            values = features[feature.name]
            if feature.kind == "categorical":
                codes = values.cat.codes.to_numpy()
                columns += [(codes == n).astype(float) for n in range(len(feature.categories))]
            else:
                name = feature.name
                numbers = values.to_numpy(dtype=float)
                filled = np.where(np.isnan(numbers), self.fill[name], numbers)
                columns.append((filled - self.mean[name]) / self.scale[name])
        return np.column_stack(columns) if columns else np.zeros((len(features), 0))

    def to_json(self) -> dict[str, JsonValue]:
        """Returns it as JSON, which `from_json` reads."""
        return {
            "features": [feature.model_dump(mode="json") for feature in self.features],
            "fill": dict(self.fill),
            "mean": dict(self.mean),
            "scale": dict(self.scale),
        }

    @classmethod
    def from_json(cls, said: JsonValue) -> "Encoding":
        """Returns what `to_json` has written."""
        it = cast("dict[str, dict[str, float]]", said)
        features = cast("list[JsonValue]", it["features"])
        return cls(
            tuple(Feature.model_validate(each) for each in features),
            it["fill"], it["mean"], it["scale"],
        )  # fmt: skip


def answer_moments(site: Site) -> Update:
    """Returns the moments of the training rows: the site task "moments".

    Where the site's own policy sets `small_cell`, not those of a feature with fewer values.
    """
    train = load_rows(site).train
    moments = moments_of(train, schema_in(site.config), own_small_cell(site))
    return Update(moments, weight=train.rows)


def moments_of(part: Part, schema: Schema, least: int = 0) -> dict[str, Tensor]:
    """Returns count, mean and sum of squared deviations of each numeric feature.

    Each is `(n_numeric,)`, float64, in the schema's order; the mean of no values is 0. A feature
    with fewer than `least` values has moments as if there were none.
    """
    names = _numeric(schema.features)
    values = part.features[names].to_numpy(dtype=float) if names else np.zeros((part.rows, 0))
    there = ~np.isnan(values)
    there &= there.sum(axis=0) >= least
    count = there.sum(axis=0).astype(float)
    mean = np.where(there, values, 0).sum(axis=0) / np.maximum(count, 1)
    m2 = (np.where(there, values - mean, 0) ** 2).sum(axis=0)
    return {"count": count, "mean": mean, "m2": m2}


def fit(
    schema: Schema, moments: Mapping[str, Mapping[str, Tensor]], *, scale: bool = True
) -> Encoding:
    """Returns the encoding of all sites' rows.

    Args:
        schema: What the sites agree on.
        moments: Site -> what `moments_of` gives there; merged in the order of the names, so that
            the sums are the same in each run.
        scale: Whether numbers are brought to mean 0 and variance 1 (n in the denominator, as
            scikit-learn has it).

    Raises:
        UpdateRejected: a site's moments are not those of these features.
    """
    names = _numeric(schema.features)
    count, mean, m2 = (np.zeros(len(names)) for _ in _NAMES)
    shapes = dict.fromkeys(_NAMES, (len(names),))
    for site in sorted(moments):
        its = numbers_in(
            moments[site], shapes, site, not_negative=("count", "m2"), of="the moments'"
        )
        n, its_mean, its_m2 = (its[name] for name in _NAMES)
        together = np.maximum(count + n, 1)
        delta = its_mean - mean
        m2 = m2 + its_m2 + delta**2 * count * n / together
        mean = mean + delta * n / together
        count = count + n
    deviation = np.sqrt(m2 / np.maximum(count, 1))
    varies = deviation > 1e-12 * np.abs(mean)
    divisor = np.where(varies & (deviation > 0), deviation, 1.0) if scale else np.ones(len(names))
    shift = mean if scale else np.zeros(len(names))
    return Encoding(
        schema.features,
        dict(zip(names, mean.tolist(), strict=True)),
        dict(zip(names, shift.tolist(), strict=True)),
        dict(zip(names, divisor.tolist(), strict=True)),
    )


def _numeric(features: Iterable[Feature]) -> list[str]:
    return [feature.name for feature in features if feature.kind != "categorical"]
