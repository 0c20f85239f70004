"""One pass over a site's table: what its columns hold, as far as its policy lets that be said."""

from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import numpy as np

from prefect_federated.datasets import Dataset, Kind, Table
from prefect_federated.datasets.policy import PrivacyPolicy
from prefect_federated.datasets.table import near
from prefect_federated.tabular.access import held_out_number, refusal, splits_of
from prefect_federated.tabular.question import TabularQuestion
from prefect_federated.tabular.schema import Feature, Label, SiteColumns

if TYPE_CHECKING:
    import pandas as pd

MOST_CLASSES = 1000
_ROWS_AT_ONCE = 100_000


def version_of(package: str) -> str:
    """Returns the version of an installed package; "none" if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def said_of(dataset: Dataset, question: TabularQuestion, versions: dict[str, str]) -> SiteColumns:
    """Returns what a site says of its table: nothing but the reason where its policy says no."""
    train, test = splits_of(dataset, question)
    looked = Look(question, dataset.policy)
    with dataset.table(train) as table:
        looked.read(table)
    train_rows, test_rows = looked.rows, 0
    if test is None:
        test_rows = held_out_number(train_rows, question.test_share)
        train_rows -= test_rows
    else:
        with dataset.table(test) as table:
            rows = Look(question, dataset.policy)
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


class Look:
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
        """Reads the table once."""
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
