"""The rows of a site's dataset for learning: what the site says of them, and the rows themselves.

Both follow the site's policy. What `describe` says leaves the site; what `load_rows` returns does
not.
"""

import hashlib
import threading
import zlib
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefect_federated.datasets import Dataset, Kind, Table, load_datasets
from prefect_federated.datasets.policy import PrivacyPolicy
from prefect_federated.datasets.table import near
from prefect_federated.errors import ConfigurationError, DatasetNotFound, UpdateRejected
from prefect_federated.executors import Site
from prefect_federated.messages import JsonValue, Update
from prefect_federated.tabular.question import TabularQuestion, question_in
from prefect_federated.tabular.schema import Feature, Label, Schema, SiteColumns

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = "columns"
"""The blob in which a site says what it has."""
SCHEMA = "schema"
"""Where the schema stands in a call's config."""
NEEDS = "needs"
"""Where the packages stand whose versions must agree."""
MOST_CLASSES = 1000
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
    dataset = _dataset(site, question)
    said = _said(site, dataset, question, {name: _version(name) for name in needs})
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


def allows_raw_rows(site: Site) -> bool:
    """Whether rows of the dataset themselves may leave the site, as support vectors do."""
    return policy_of(site).raw_rows


def policy_of(site: Site) -> PrivacyPolicy:
    """Returns the policy of the dataset that a call asks for."""
    return _dataset(site, question_in(site.config)).policy


def own_small_cell(site: Site) -> int:
    """Returns the `small_cell` that the site's own datasets.yaml sets; 0 where it sets none."""
    policy = policy_of(site)
    return policy.small_cell if "small_cell" in policy.model_fields_set else 0


def load_rows(site: Site) -> Rows:
    """Returns the rows that a call's config asks for, in its schema's encoding; read once a job.

    Rows without a label are left out, and so are those whose class the schema does not have.

    Raises:
        DatasetNotFound: no such dataset, split or column.
        DatasetUnreadable: it cannot be read.
        ConfigurationError: the site's policy does not let it be trained on.
    """
    question = question_in(site.config)
    schema = Schema.model_validate(site.config[SCHEMA])
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
                _kept.popitem(last=False)
        return rows


_kept: "OrderedDict[tuple[str, ...], Rows]" = OrderedDict()
_lock = threading.Lock()
_locks: dict[tuple[str, ...], threading.Lock] = {}


def _reading(key: tuple[str, ...]) -> threading.Lock:
    with _lock:
        return _locks.setdefault(key, threading.Lock())


def _dataset(site: Site, question: TabularQuestion) -> Dataset:
    return load_datasets(site.data).named(question.dataset)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _splits(dataset: Dataset, question: TabularQuestion) -> tuple[str, str | None]:
    """Returns the split to train on, and the one to measure on; None: rows are held out."""
    there = dataset.splits
    train = question.train
    if train is None:
        if "train" not in there and len(there) > 1:
            raise DatasetNotFound(
                f"dataset {dataset.name!r} has no split 'train', but {', '.join(there)}. Say "
                "which one to train on with `train_split`."
            )
        train = "train" if "train" in there else there[0]
    test = question.test
    if test is None and "test" in there and train != "test":
        test = "test"
    for name in filter(None, (train, test)):
        if name not in there:
            raise DatasetNotFound(
                f"dataset {dataset.name!r} has no split {name!r}. {near(name, there)}"
            )
    return train, None if test == train else test


def refusal(policy: PrivacyPolicy, rows: int) -> str | None:
    """Returns why a site's policy does not let so many rows be trained on; None if it does."""
    if policy.training is False or (policy.training is None and policy.noise is not None):
        why = "says `training: false`" if policy.training is False else "asks for noise"
        return (
            f"the privacy section of its datasets.yaml {why}, and no model is trained with noise. "
            "Whoever is responsible for the data can set `training: true` there"
        )
    if rows < policy.minimum_rows:
        return f"{rows} rows to train on < minimum {policy.minimum_rows}"
    return None


def _said(
    site: Site, dataset: Dataset, question: TabularQuestion, versions: dict[str, str]
) -> SiteColumns:
    train, test = _splits(dataset, question)
    looked = _Look(question, dataset.policy)
    with dataset.table(train) as table:
        looked.read(table)
    train_rows, test_rows = looked.rows, 0
    if test is None:
        test_rows = _held_out_number(train_rows, question.test_share)
        train_rows -= test_rows
    else:
        with dataset.table(test) as table:
            rows = _Look(question, dataset.policy)
            rows.read(table)
            test_rows = rows.rows
    why_not = refusal(dataset.policy, train_rows)
    if why_not is not None:  # nothing else of it is told
        return SiteColumns(problems=looked.lacking or (why_not,), versions=versions)
    return SiteColumns(
        features=tuple(looked.features()),
        withheld=looked.withheld,
        label=looked.label(),
        train_rows=train_rows,
        test_rows=test_rows,
        versions=versions,
        problems=tuple(looked.problems),
        notes=tuple(looked.notes()),
    )


class _Look:
    """One pass over a split: what its columns hold, and what is wrong with its label."""

    def __init__(self, question: TabularQuestion, policy: PrivacyPolicy) -> None:
        self.rows = 0
        self.problems: list[str] = []
        self.lacking: tuple[str, ...] = ()  # the problems that tell nothing of the values
        self.withheld: dict[str, str] = {}
        self._question = question
        self._policy = policy
        self._kinds: dict[str, Kind] = {}
        self._label_kind: Kind | None = None
        self._counts: dict[str, Counter[str]] = {}
        self._classes: Counter[str | float] = Counter()
        self._unlabelled = 0
        self._infinite: Counter[str] = Counter()

    def read(self, table: Table) -> None:
        question = self._question
        own = {question.label, question.key, question.group} - {None}
        wanted = [n for n in table.columns if n not in own] if question.features is None else [
            name for name in question.features if name in table.columns
        ]  # fmt: skip
        asked = question.features
        self.withheld = {
            name: why.rstrip(".")
            for name, why in table.unusable.items()
            if name not in own and (asked is None or name in asked)
        }
        self._kinds = {name: table.columns[name] for name in wanted}
        label = question.label
        if label is not None and label in table.columns:
            self._label_kind = table.columns[label]
        elif label is not None and question.key is None:
            why = table.unusable.get(label) or (
                f"there is no column {label!r} that may be used. {near(label, table.columns)}"
            )
            self.problems.append(f"the label: {why}")
        for name in (question.key, question.group):
            if name is not None and name not in table.columns:
                self.problems.append(
                    f"there is no column {name!r} that may be used. {near(name, table.columns)}"
                )
        self.lacking = tuple(self.problems)
        read = [*wanted, *([label] if label is not None and self._label_kind else [])]
        self._counts = {name: Counter() for name in wanted if self._kinds[name] == "categorical"}
        for chunk in table.chunks(read, _ROWS_AT_ONCE):
            self._take(chunk)
        self._check_label()
        for name, number in self._infinite.items():
            self.withheld[name] = f"{number} of its values are infinite"
            self._kinds.pop(name, None)

    def _take(self, chunk: "pd.DataFrame") -> None:
        label = self._question.label
        if label is not None and self._label_kind is not None:
            there = chunk[label].notna()
            self._unlabelled += int((~there).sum())
            self.rows += int(there.sum())
            if len(self._classes) <= MOST_CLASSES:
                values = chunk[label][there]
                self._classes.update(dict(values.value_counts()))
        else:
            self.rows += len(chunk)
        for name, counts in self._counts.items():
            counts.update({str(k): int(n) for k, n in chunk[name].value_counts().items() if n})
        for name, kind in self._kinds.items():
            if kind in ("numeric", "datetime"):
                infinite = int(np.isinf(chunk[name].to_numpy()).sum())
                if infinite:
                    self._infinite[name] += infinite

    def _check_label(self) -> None:
        label, objective = self._question.label, self._question.objective
        if label is None or self._label_kind is None:
            return
        told = f"the label {label!r}"
        self._classes = Counter({value: n for value, n in self._classes.items() if n})
        numbers = [each for each in self._classes if not isinstance(each, str)]
        if self._label_kind == "empty" or not self._classes:
            self.problems.append(f"{told} has no value in any row")
            self.lacking = tuple(self.problems)
        elif self._question.has_classes:
            if len(self._classes) > MOST_CLASSES:
                self.problems.append(
                    f"{told} has more than {MOST_CLASSES} different values, and objective "
                    f"{objective!r} takes a few classes"
                )
        elif objective != "none" and self._label_kind == "categorical":
            self.problems.append(f"{told} holds text, and objective {objective!r} takes numbers")
        elif not np.isfinite(np.array(numbers, float)).all():
            self.problems.append(f"{told} has infinite values")
        elif objective in ("poisson", "ranking") and min(numbers) < 0:
            self.problems.append(f"{told} has values below 0, and objective {objective!r} has none")
        elif objective in ("poisson", "ranking") and any(each % 1 for each in numbers):
            self.problems.append(
                f"{told} has fractions, and objective {objective!r} takes whole numbers"
            )

    def features(self) -> list[Feature]:
        """Returns the columns that may be used, with the categories that the policy lets out."""
        found = []
        least, each = max(1, self._policy.small_cell), self._policy.rows_per_category
        for name, kind in self._kinds.items():
            counts = self._counts.get(name, Counter())
            if len(counts) > 2 and len(counts) * each > self.rows:
                self.withheld[name] = (
                    f"more than one category for {each} rows; such a column may name persons"
                )
                continue
            named = sorted(value for value, n in counts.items() if n >= least)
            found.append(Feature(name=name, kind=kind, categories=tuple(named)))
        return found

    def label(self) -> Label | None:
        """Returns the label as it is here; classes in too few rows are not named."""
        if self._label_kind is None:
            return None
        if not self._question.has_classes:
            return Label(kind=self._label_kind)
        least = max(1, self._policy.small_cell)
        named = [value for value, n in self._classes.items() if n >= least]
        classes = tuple(each if isinstance(each, str) else float(each) for each in named)
        return Label(kind=self._label_kind, classes=tuple(sorted(classes, key=_order)))

    def notes(self) -> list[str]:
        """Returns what a person should know."""
        notes = []
        if self._unlabelled:
            notes.append("rows without a label are left out")
        least = self._policy.small_cell
        if self._question.has_classes and any(n < least for n in self._classes.values()):
            notes.append(
                f"classes in fewer than {least} rows are not named; their rows are left out "
                "unless another site names the class"
            )
        if len([n for n in self._classes.values() if n >= least]) == 1 and (
            self._question.has_classes
        ):
            notes.append("the label has one class only")
        return notes


def _order(value: str | float) -> tuple[bool, str | float]:
    return isinstance(value, str), value


def _load(site: Site, question: TabularQuestion, schema: Schema) -> Rows:
    dataset = _dataset(site, question)
    train_split, test_split = _splits(dataset, question)
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


def _held_out_number(rows: int, share: float) -> int:
    return 0 if not share else min(max(1, round(rows * share)), max(rows - 1, 0))


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
    number = _held_out_number(part.rows, question.test_share)
    if part.group is not None:  # a query's rows stay together
        queries = random.permutation(int(part.group.max(initial=-1)) + 1)
        held = queries[: _held_out_number(len(queries), question.test_share)]
        return np.isin(part.group, held)
    chosen[random.permutation(part.rows)[:number]] = True
    return chosen


def config_of(question: TabularQuestion, schema: Schema | None) -> Mapping[str, JsonValue]:
    """Returns what a call's config holds for `describe` and `load_rows`."""
    config: dict[str, JsonValue] = {"tabular": question.model_dump(mode="json")}
    if schema is not None:
        config[SCHEMA] = schema.model_dump(mode="json")
    return config
