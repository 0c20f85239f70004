"""The federation's encoding of features as fitted scikit-learn transformers, and pipelines of them."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

if TYPE_CHECKING:
    from prefect_federated.tabular.encoding import Encoding
    from prefect_federated.tabular.schema import Feature


def preprocessing_of(encoding: "Encoding", *, drop_first: bool = False) -> ColumnTransformer:
    """Returns what turns a DataFrame of features into the encoding's columns, in its order.

    Args:
        encoding: As the sites have agreed on it.
        drop_first: Whether the first category of each feature has no column.
    """
    parts = [
        (feature.name, _transformer(feature, encoding, drop_first), [feature.name])
        for feature in encoding.features
        if feature.kind != "categorical" or feature.categories
    ]
    found = ColumnTransformer(parts, verbose_feature_names_out=False)
    sample = {
        feature.name: np.array([*feature.categories, "", ""][:2], object)
        if feature.kind == "categorical"
        else np.array([0.0, 1.0])
        for feature in encoding.features
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the sample's unknown categories
        found.fit(pd.DataFrame(sample))
    for name, fitted, _ in found.transformers_:
        if isinstance(fitted, Pipeline):
            _set_numbers(fitted, encoding.fill[name], encoding.mean[name], encoding.scale[name])
    return found


def with_preprocessing(
    encoding: "Encoding", estimator: object, *, drop_first: bool = False
) -> Pipeline:
    """Returns a fitted pipeline of the encoding and an estimator that was fitted to its columns.

    Args:
        encoding: As the sites have agreed on it.
        estimator: Fitted.
        drop_first: Whether the first category of each feature has no column.
    """
    first = preprocessing_of(encoding, drop_first=drop_first)
    return Pipeline([("preprocessing", first), ("estimator", estimator)])


def _transformer(feature: "Feature", encoding: "Encoding", drop_first: bool) -> Any:
    if feature.kind == "categorical":
        return OneHotEncoder(
            categories=[list(feature.categories)],
            drop="first" if drop_first else None,
            handle_unknown="ignore",  # and what is missing: 0 in all columns
            sparse_output=False,
        )
    return Pipeline([("impute", SimpleImputer()), ("scale", StandardScaler())])


def _set_numbers(fitted: Pipeline, fill: float, mean: float, scale: float) -> None:
    fitted[0].statistics_ = np.array([fill])
    scaler = fitted[1]
    scaler.mean_, scaler.scale_ = np.array([mean]), np.array([scale])
    scaler.var_ = scaler.scale_**2
