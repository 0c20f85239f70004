"""The rows of a site's dataset for learning: what the site says of them, and the rows themselves.

Both follow the site's policy. What `describe` says leaves the site; what `load_rows` returns does
not.
"""

import hashlib
import threading
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefect_federated.datasets import Table
from prefect_federated.errors import ConfigurationError, UpdateRejected
from prefect_federated.executors import Site
from prefect_federated.messages import JsonValue, Update
from prefect_federated.tabular.access import dataset_of, held_out_number, refusal, splits_of
from prefect_federated.tabular.looking import said_of, version_of
from prefect_federated.tabular.question import TabularQuestion, question_in
from prefect_federated.tabular.schema import Feature, Schema, SiteColumns

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = "columns"
"""The blob in which a site says what it has."""
SCHEMA = "schema"
"""Where the schema stands in a call's config."""
NEEDS = "needs"
"""Where the packages stand whose versions must agree."""
_MOST_KEPT = 32
_ROWS_AT_ONCE = 100_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """Some rows of one site.

    Args:
        features: The schema's features in its order: float64, NaN where missing; categorical ones
            as pandas categoricals with the schema's categories.
        label: `(rows,)`, float64: the number of the class, or the value; empty without a label.
        group: `(rows,)`: each row's query, as numbers from 0; None without ranking.
        key: What each row is matched by; None without a key.
    """

    features: "pd.DataFrame"
    label: Floats
    group: NDArray[np.int64] | None = None
    key: tuple[str, ...] | None = None

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.features)

    def of(self, places: NDArray[np.int64] | NDArray[np.bool_]) -> "Part":
        """Returns some of the rows, in the order of `places`."""
        chosen = np.flatnonzero(places) if places.dtype == bool else places
        return Part(
            self.features.iloc[chosen].reset_index(drop=True),
            self.label[chosen] if len(self.label) else self.label,
            None if self.group is None else self.group[chosen],
            None if self.key is None else tuple(self.key[place] for place in chosen),
        )


@dataclass(frozen=True)
class Rows:
    """A site's rows: those to train on, and those to measure on."""

    train: Part
    test: Part


def describe(site: Site) -> Update:
    """Says what the site has, as far as its policy lets it: the site task "columns".

    Args:
        site: Its config holds the question.
    """
    question = question_in(site.config)
    asked = site.config.get(NEEDS)
    needs = [str(each) for each in asked] if isinstance(asked, list) else []
    dataset = dataset_of(site, question)
    said = said_of(dataset, question, {name: version_of(name) for name in needs})
    return Update(blobs={COLUMNS: said.model_dump_json().encode()})


def columns_in(update: Update) -> SiteColumns:
    """Returns what a site has said of its columns.

    Raises:
        UpdateRejected: it is not what `describe` sends.
    """
    try:
        return SiteColumns.model_validate_json(update.blobs[COLUMNS])
    except (KeyError, ValueError) as error:
        raise UpdateRejected(
            f"site {update.site!r} did not say what columns it has "
            f"({type(error).__name__}). Run the same version of prefect-federated there."
        ) from error


def schema_in(config: Mapping[str, JsonValue]) -> Schema:
    """Returns what the sites have agreed on, of a call's config.

    Raises:
        KeyError: there is none.
    """
    return Schema.model_validate(config[SCHEMA])


def load_rows(site: Site) -> Rows:
    """Returns the rows that a call's config asks for, in its schema's encoding; read once a job.

    Rows without a label are left out, and so are those whose class the schema does not have.

    Raises:
        DatasetNotFound: no such dataset, split or column.
        DatasetUnreadable: it cannot be read.
        ConfigurationError: the site's policy does not let it be trained on.
    """
    question = question_in(site.config)
    schema = schema_in(site.config)
    key = (str(site.state), site.name, question.model_dump_json(), schema.model_dump_json())
    with _reading(key):
        with _lock:
            if key in _kept:
                _kept.move_to_end(key)
                return _kept[key]
        rows = _load(site, question, schema)
        with _lock:
            _kept[key] = rows
            while len(_kept) > _MOST_KEPT:
                oldest, _ = _kept.popitem(last=False)
                _locks.pop(oldest, None)
        return rows


_kept: "OrderedDict[tuple[str, ...], Rows]" = OrderedDict()
_lock = threading.Lock()
_locks: dict[tuple[str, ...], threading.Lock] = {}


def _reading(key: tuple[str, ...]) -> threading.Lock:
    with _lock:
        return _locks.setdefault(key, threading.Lock())


def _load(site: Site, question: TabularQuestion, schema: Schema) -> Rows:
    dataset = dataset_of(site, question)
    train_split, test_split = splits_of(dataset, question)
    with dataset.table(train_split) as table:
        train = _part(table, question, schema)
    if test_split is not None:
        with dataset.table(test_split) as table:
            test = _part(table, question, schema)
    else:
        held_out = _held_out(site, question, train)
        train, test = train.of(~held_out), train.of(held_out)
    why_not = refusal(dataset.policy, train.rows)
    if why_not is not None:
        raise ConfigurationError(f"{site.name} takes no part: {why_not}.")
    return Rows(train, test)


def _part(table: Table, question: TabularQuestion, schema: Schema) -> Part:
    import pandas as pd

    features = [each for each in schema.features if each.name in table.columns]
    label = question.label if question.label in table.columns else None
    others = [n for n in (label, question.key, question.group) if n is not None]
    frames, labels, keys, groups = [], [], [], []
    for chunk in table.chunks(
        list(dict.fromkeys([*(f.name for f in features), *others])), _ROWS_AT_ONCE
    ):
        numbers = None if label is None else _numbers(chunk[label], schema)
        there = np.ones(len(chunk), bool) if numbers is None else np.isfinite(numbers)
        kept = chunk[there]
        frames.append(pd.DataFrame({f.name: _column(kept, f) for f in features}, index=kept.index))
        labels.append(np.zeros(0) if numbers is None else numbers[there])
        if question.key is not None:
            keys.append(_texts(kept[question.key]))
        if question.group is not None:
            groups.append(_texts(kept[question.group]))
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(
        {f.name: _column(None, f) for f in features}
    )  # fmt: skip
    named = np.concatenate(groups) if groups else None
    return Part(
        frame,
        np.concatenate(labels) if labels else np.zeros(0),
        None if named is None else np.unique(named, return_inverse=True)[1].astype(np.int64),
        None if question.key is None else tuple(str(each) for part in keys for each in part),
    )


def _column(chunk: "pd.DataFrame | None", feature: Feature) -> "pd.Series[Any] | pd.Categorical":
    """Returns a column as the schema has it: rows of categories that nobody names are missing."""
    import pandas as pd

    if chunk is None:
        empty = pd.Series([], dtype="float64")
        return pd.Categorical([], feature.categories) if feature.kind == "categorical" else empty
    values = chunk[feature.name]
    if feature.kind != "categorical":
        return values.astype("float64")
    if not isinstance(values.dtype, pd.CategoricalDtype):  # no value at all at this site
        return pd.Categorical([None] * len(values), feature.categories)
    return pd.Categorical(values.cat.set_categories(list(feature.categories)))


def _numbers(label: "pd.Series[float]", schema: Schema) -> Floats:
    """Returns the label as numbers; NaN where there is none, or no class of the schema."""
    import pandas as pd

    if isinstance(label.dtype, pd.CategoricalDtype):
        found = label.cat.set_categories([str(each) for each in schema.classes]).cat.codes
        return np.where(found < 0, np.nan, found).astype(float)
    values: Floats = label.to_numpy(dtype=float, na_value=np.nan).astype(float)
    if not schema.classes:
        return values
    classes = np.array(schema.classes, float)
    places = np.clip(np.searchsorted(classes, values), 0, len(classes) - 1)
    return np.where(classes[places] == values, places, np.nan)


def _texts(column: "pd.Series[float]") -> NDArray[np.str_]:
    """Returns keys as text; whole numbers without a fraction, as all sites write them then."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.astype(object).where(column.notna(), "").to_numpy().astype(str)
    values = column.to_numpy(dtype=float)
    return np.array(
        ["" if np.isnan(v) else f"{v:.0f}" if v % 1 == 0 else repr(v) for v in values], str
    )


def _held_out(site: Site, question: TabularQuestion, part: Part) -> NDArray[np.bool_]:
    """Returns which rows are measured on: the same in each round, by the job's seed.

    With a key they are chosen by it, so that all sites hold out the same rows.
    """
    if part.key is not None:
        limit = int(question.test_share * 2**32)
        salt = str(question.seed).encode()
        return np.array(
            [
                int.from_bytes(hashlib.sha256(salt + b"/" + key.encode()).digest()[:4]) < limit
                for key in part.key
            ],
            bool,
        )
    chosen = np.zeros(part.rows, bool)
    random = np.random.default_rng([question.seed, zlib.crc32(site.name.encode())])
    number = held_out_number(part.rows, question.test_share)
    if part.group is not None:  # a query's rows stay together
        queries = random.permutation(int(part.group.max(initial=-1)) + 1)
        held = queries[: held_out_number(len(queries), question.test_share)]
        return np.isin(part.group, held)
    chosen[random.permutation(part.rows)[:number]] = True
    return chosen


def config_of(question: TabularQuestion, schema: Schema | None) -> Mapping[str, JsonValue]:
    """Returns what a call's config holds for `describe` and `load_rows`."""
    config: dict[str, JsonValue] = {"tabular": question.model_dump(mode="json")}
    if schema is not None:
        config[SCHEMA] = schema.model_dump(mode="json")
    return config
