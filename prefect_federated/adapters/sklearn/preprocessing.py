"""The federation's encoding as a fitted scikit-learn pipeline, which takes original columns.

A saved model begins with it, so that it predicts from rows as they are in a file or a database,
encoded as every site has encoded its own.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from prefect_federated.datasets.cells import cells
from prefect_federated.errors import ConfigurationError
from prefect_federated.tabular.encoding import Encoding
from prefect_federated.tabular.schema import Feature


class OriginalColumns(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Reads original columns as sites read theirs: numbers as float64, categories as text.

    Args:
        names: The columns, in order.
        kinds: What each holds: "numeric", "boolean", "datetime" or "categorical".
    """

    def __init__(self, names: Sequence[str], kinds: Sequence[str]) -> None:
        self.names = names
        self.kinds = kinds

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, frame: pd.DataFrame, label: object = None) -> "OriginalColumns":
        """Does nothing: what the columns are was agreed."""
        return self

    def transform(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Returns a data frame of the named columns; further ones are left out.

        Raises:
            ConfigurationError: a column is not there.
            MixedTypes: a column holds values that are not of its kind.
        """
        absent = [name for name in self.names if name not in frame.columns]
        if absent:
            raise ConfigurationError(
                f"the model predicts from {', '.join(self.names)}, and these columns are not "
                f"there: {', '.join(absent)}. Give a data frame with the original columns."
            )
        read: dict[str, Any] = {}
        for name, kind in zip(self.names, self.kinds, strict=True):
            array = pyarrow.array(frame[name], from_pandas=True)
            array = array.combine_chunks() if isinstance(array, pyarrow.ChunkedArray) else array
            found = cells(name, array, kind, 1)  # type: ignore[arg-type]
            read[name] = np.array(found, dtype=object) if kind == "categorical" else found
            if kind == "categorical":
                read[name][pd.isna(read[name])] = None
        return pd.DataFrame(read, index=frame.index)


def with_preprocessing(
    encoding: Encoding, *estimators: BaseEstimator, drop_first: bool = False
) -> Pipeline:
    """Returns a fitted pipeline of the encoding and what was fitted to its columns.

    Args:
        encoding: As the sites have agreed on it.
        estimators: Fitted; the last one predicts.
        drop_first: Whether the first category of each feature has no column.
    """
    first = preprocessing_of(encoding, drop_first=drop_first)
    between = [(type(each).__name__.lower(), each) for each in estimators[:-1]]
    return Pipeline([("preprocessing", first), *between, ("estimator", estimators[-1])])


def preprocessing_of(encoding: Encoding, *, drop_first: bool = False) -> Pipeline:
    """Returns the encoding as a fitted pipeline, from original columns to numbers, bit for bit.

    Its steps: `OriginalColumns`, and a `ColumnTransformer` of `SimpleImputer` with `StandardScaler`
    and of `OneHotEncoder`.

    Args:
        encoding: As the sites have agreed on it.
        drop_first: Whether the first category of each feature has no column.
    """
    used = [each for each in encoding.features if each.kind != "categorical" or each.categories]
    columns = OriginalColumns(
        [feature.name for feature in used], [feature.kind for feature in used]
    )
    parts = []
    for place, (is_text, run) in enumerate(groupby(used, lambda it: it.kind == "categorical")):
        features = list(run)
        part = _categories(features, drop_first) if is_text else _numbers(features, encoding)
        names = [feature.name for feature in features]
        parts.append((f"{'categories' if is_text else 'numbers'}_{place}", part, names))
    encode = ColumnTransformer(parts, verbose_feature_names_out=False)
    encode.fit(_example(used, encoding))
    for (_, part, names), (_, fitted, _) in zip(parts, encode.transformers_, strict=True):
        if isinstance(part, Pipeline):
            _set_numbers(fitted, names, encoding)
    return Pipeline([("columns", columns), ("encode", encode)])


def _numbers(features: Sequence[Feature], encoding: Encoding) -> Pipeline:
    names = [feature.name for feature in features]
    steps: list[tuple[str, Any]] = [("fill", SimpleImputer(keep_empty_features=True))]
    if any(encoding.mean[name] != 0 or encoding.scale[name] != 1 for name in names):
        steps.append(("scale", StandardScaler()))
    return Pipeline(steps)


def _categories(features: Sequence[Feature], drop_first: bool) -> OneHotEncoder:
    named = [np.array(feature.categories, dtype=object) for feature in features]
    return OneHotEncoder(
        categories=named,
        drop="first" if drop_first else None,
        handle_unknown="ignore",  # and what is missing: 0 in all columns
        sparse_output=False,
    )


def _set_numbers(fitted: Pipeline, names: Sequence[str], encoding: Encoding) -> None:
    fitted[0].statistics_ = np.array([encoding.fill[name] for name in names])
    if len(fitted) > 1:
        fitted[1].mean_ = np.array([encoding.mean[name] for name in names])
        fitted[1].scale_ = np.array([encoding.scale[name] for name in names])
        fitted[1].var_ = fitted[1].scale_ ** 2


def _example(features: Sequence[Feature], encoding: Encoding) -> pd.DataFrame:
    """Returns one row, from which the shapes of the fitted parts follow."""
    return pd.DataFrame(
        {
            feature.name: np.array([feature.categories[0]], dtype=object)
            if feature.kind == "categorical"
            else np.array([encoding.fill[feature.name]])
            for feature in features
        }
    )
