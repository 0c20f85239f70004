"""The columns of a linear model: those of the encoding, but the first category of each feature."""

from dataclasses import dataclass

import numpy as np

from prefect_federated.linear.inference import Units
from prefect_federated.linear.losses import Floats
from prefect_federated.messages import JsonValue
from prefect_federated.tabular.encoding import Encoding
from prefect_federated.tabular.rows import Part


@dataclass(frozen=True)
class Design:
    """How features become the columns of a linear model, without the one for the intercept.

    The columns of all categories of a feature add up to one, as the intercept's column is: so the
    first category has none, and the others' coefficients are against it.
    """

    encoding: Encoding

    @classmethod
    def of(cls, said: JsonValue) -> "Design":
        """Returns the design of the encoding in a call's config."""
        return cls(Encoding.from_json(said))

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names: a feature's, or "feature=category"."""
        all_names = self.encoding.names
        return tuple(all_names[place] for place in self._kept())

    @property
    def units(self) -> Units:
        """What the columns are in the features' own units."""
        center, scale = [], []
        for feature in self.encoding.features:
            if feature.kind == "categorical":
                others = max(0, len(feature.categories) - 1)
                center += [0.0] * others
                scale += [1.0] * others
            else:
                center.append(self.encoding.mean[feature.name])
                scale.append(self.encoding.scale[feature.name])
        return Units(self.names, np.array(center), np.array(scale))

    def matrix(self, part: Part) -> Floats:
        """Returns rows as "`(rows, n_columns)`"."""
        return self.encoding.transform(part.features)[:, self._kept()]

    def few(self, part: Part, least: int) -> list[str]:
        """Returns what fewer than `least` rows have, but some: a category, a value, a truth.

        Sums over a column that only these rows have are sums of these rows.
        """
        found = []
        for feature in self.encoding.features:
            values = part.features[feature.name]
            if feature.kind == "categorical":
                counts = values.value_counts()
                named = {f"{feature.name}={each}": counts[each] for each in feature.categories}
            elif feature.kind == "boolean":
                named = {f"{feature.name}={each}": (values == each).sum() for each in (0, 1)}
            else:
                named = {feature.name: values.notna().sum()}
            found += [name for name, number in named.items() if 0 < number < least]
        return found

    def _kept(self) -> list[int]:
        places: list[int] = []
        start = 0
        for feature in self.encoding.features:
            is_categorical = feature.kind == "categorical"
            number = len(feature.categories) if is_categorical else 1
            places += range(start + (1 if is_categorical else 0), start + number)
            start += number
        return places
