"""A site's datasets, by name, and the tables of their splits."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from prefect_federated.datasets.kinds import Kind, Unusable
from prefect_federated.datasets.policy import PrivacyPolicy
from prefect_federated.datasets.sources import Part, Reader, Source
from prefect_federated.datasets.table import Table, close, near
from prefect_federated.errors import DatasetNotFound, DatasetUnreadable

MOST_SPLITS = 20
"""Different values of a column that names the splits, at most."""
WHOLE = "all"
"""The split of a dataset that has no others."""


@dataclass(frozen=True)
class Dataset:
    """What a site has under one name; the file's entry, checked.

    Args:
        name: The dataset's name.
        sources: Split -> its rows. With `split_column`, one source whose rows name their split.
        policy: What may leave the site of it.
        split_column: The column that names each row's split; None if each split is a source.
        allowed: The only columns that may be used; None for all.
        forbidden: Columns that may not be used, in upper or lower case.
        kinds: Column -> what it holds, where that is not what its values look like.
        where: `file:line` of the entry, as errors name it.
    """

    name: str
    sources: Mapping[str, Source]
    policy: PrivacyPolicy
    split_column: str | None = None
    allowed: tuple[str, ...] | None = None
    forbidden: frozenset[str] = frozenset()
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    where: str = ""

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The splits' names; reads the column that names them, if there is one.

        Raises:
            DatasetUnreadable: the source cannot be read, or the column does not name splits.
        """
        if self.split_column is None:
            return tuple(self.sources)
        source = self.sources[WHOLE]
        with source.open() as reader:
            self._check_names(source, reader)
            found = reader.distinct(self.split_column, MOST_SPLITS)
        told = f"{self._title()}: column {self.split_column!r} of {source.title}"
        if len(found) > MOST_SPLITS:
            raise DatasetUnreadable(
                f"{told} has more than {MOST_SPLITS} different values. Name a column in "
                "`split_column` that holds each row's split, such as train or test."
            )
        if any(not value for value in found):
            raise DatasetUnreadable(
                f"{told} is empty in some rows, which belong to no split. Write the split's name "
                "there, or leave those rows out."
            )
        return tuple(sorted(str(value) for value in found))

    @contextmanager
    def table(self, split: str) -> Iterator[Table]:
        """Opens the rows of a split, with the columns that may be used.

        Raises:
            DatasetNotFound: there is no such split, or a column that the file names.
            DatasetUnreadable: the source cannot be read.
        """
        if split not in self.splits:
            raise DatasetNotFound(
                f"{self._title()} has no split {split!r}. {near(split, self.splits)}"
            )
        part = None if self.split_column is None else Part(self.split_column, split)
        source = self.sources[split if part is None else WHOLE]
        with source.open() as reader:
            columns, unusable = self._look(source, reader)
            yield Table(self._title(split), reader, columns, unusable, part)

    def _look(self, source: Source, reader: Reader) -> tuple[dict[str, Kind], dict[str, str]]:
        self._check_names(source, reader)
        usable = self._usable(reader)
        found = reader.look([name for name in usable if name not in self.kinds])
        columns: dict[str, Kind] = {}
        unusable: dict[str, str] = {}
        for name in usable:
            kind = self.kinds.get(name) or found[name]
            if isinstance(kind, Unusable):
                unusable[name] = kind.reason
            else:
                columns[name] = kind
        return columns, unusable

    def _usable(self, reader: Reader) -> list[str]:
        return [
            name
            for name in self.policy.allowed(reader.names)
            if (self.allowed is None or name in self.allowed)
            and name.casefold() not in self.forbidden
            and name != self.split_column
        ]

    def _check_names(self, source: Source, reader: Reader) -> None:
        """Refuses a source that has a name twice, or lacks one that the file names.

        What it says leaves the site: it names no column that may not be used, and no folder.
        """
        names, usable = list(reader.names), self._usable(reader)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            told = f"column {twice[0]!r}" if twice[0] in usable else "a column"
            raise DatasetUnreadable(
                f"{self._title()}: {source.title} has {told} more than once. Give each column a "
                "name of its own."
            )
        folded = {name.casefold() for name in names}
        named = [*(self.allowed or ()), *self.kinds, *filter(None, [self.split_column])]
        absent = [name for name in named if name not in names]
        absent += [name for name in sorted(self.forbidden) if name not in folded]
        if absent:
            is_forbidden = absent[0] in self.forbidden  # what comes near was to be kept back
            known = [] if is_forbidden else usable
            raise DatasetNotFound(
                f"{self.where}: dataset {self.name!r} names the column {absent[0]!r}, "
                f"which {source.title} does not have. {close(absent[0], known)}Correct the name."
            )

    def _title(self, split: str | None = None) -> str:
        own = f"dataset {self.name!r}"
        return own if split is None or self.splits == (WHOLE,) else f"{own}, split {split!r}"


@dataclass(frozen=True)
class Datasets:
    """All datasets of a site, in the file's order."""

    by_name: Mapping[str, Dataset]
    file_name: str = "datasets.yaml"

    @property
    def names(self) -> tuple[str, ...]:
        """The datasets' names."""
        return tuple(self.by_name)

    def named(self, name: str) -> Dataset:
        """Returns the dataset of that name.

        Raises:
            DatasetNotFound: there is none; the message has near names.
        """
        if name not in self.by_name:
            raise DatasetNotFound(
                f"there is no dataset {name!r} in this site's {self.file_name}. "
                f"{near(name, self.by_name)}"
            )
        return self.by_name[name]
