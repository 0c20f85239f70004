"""`datasets.yaml`: what data a site has, in its own folder; each error names the line.

No error shows a URL or a query: there may be a password in it.
"""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from prefect_federated.datasets.dataset import WHOLE, Dataset, Datasets
from prefect_federated.datasets.policy import Noise, PrivacyPolicy
from prefect_federated.datasets.sources import Source
from prefect_federated.errors import DatasetFileError
from prefect_federated.yaml_lines import Location, YamlDocument, read_yaml

FILE = "datasets.yaml"
_SOURCES = ("csv", "parquet", "url", "function")
_ONE_SOURCE = (
    "Write one of `csv: FILE`, `parquet: FILE`, `url: DATABASE` with `query: SELECT ...`, or "
    "`function: module:name`"
)

Text = Annotated[str, Field(min_length=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PasswordEntry(_Entry):
    """Where a database's password is kept: an environment variable or a file of the site's."""

    env: Text | None = None
    file: Text | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError(
                "`password_from` takes one of `{env: NAME}` and `{file: PATH}`. Write one of them."
            )
        return self


class SourceEntry(_Entry):
    """Where rows come from: a CSV or Parquet file, a database or a function."""

    csv: Text | None = None
    parquet: Text | None = None
    url: Text | None = None
    query: Text | None = None
    password_from: PasswordEntry | None = None
    function: Text | None = None

    @property
    def named(self) -> tuple[str, ...]:
        """The kinds of source that are there; one, unless the entry has splits."""
        return tuple(name for name in _SOURCES if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _is_one_source(self) -> Self:
        if len(self.named) > 1:
            raise ValueError(f"{' and '.join(self.named)} are two sources. {_ONE_SOURCE}.")
        if not self.named and not getattr(self, "splits", None):
            or_splits = ", or `splits:` with one of these each" if self._may_split() else ""
            raise ValueError(f"there is no source here. {_ONE_SOURCE}{or_splits}.")
        if (self.query is None) != (self.url is None):
            raise ValueError(
                "a database takes both `url: DATABASE` and `query: SELECT ...`. Write both."
            )
        if self.password_from and self.url is None:
            raise ValueError("`password_from` goes with `url`. Leave it out, or write the URL.")
        return self

    @classmethod
    def _may_split(cls) -> bool:
        return "splits" in cls.model_fields


class DatasetEntry(SourceEntry):
    """One dataset: a source, or a source a split; and what may be used of it."""

    splits: Annotated[dict[str, SourceEntry], Field(min_length=1)] | None = None
    split_column: Text | None = None
    columns: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    forbidden: tuple[str, ...] = ()
    kinds: dict[str, Literal["numeric", "boolean", "categorical", "datetime"]] = {}
    privacy: PrivacyPolicy = PrivacyPolicy()

    @model_validator(mode="after")
    def _splits_one_way(self) -> Self:
        if self.splits and self.named:
            raise ValueError(
                f"`splits` and `{self.named[0]}` both say where the rows are. Keep one of them; "
                "`split_column: NAME` makes splits of one source."
            )
        if self.splits and self.split_column:
            raise ValueError("`splits` and `split_column` exclude each other. Keep one of them.")
        return self


class DatasetsFile(_Entry):
    """What a site's `datasets.yaml` says."""

    privacy: PrivacyPolicy = PrivacyPolicy()
    datasets: Annotated[dict[Text, DatasetEntry], Field(min_length=1)]


def load_datasets(folder: Path) -> Datasets:
    """Returns the datasets that `datasets.yaml` in a site's data folder names; opens none.

    Raises:
        DatasetFileError: the file cannot be read or is wrong; one line for each thing that is
            wrong, each begins with `datasets.yaml:line: ` and says what to write. It may leave the
            site, so it names no folder of it.
    """
    file = folder / FILE
    document = read_yaml(
        file,
        DatasetFileError,
        "Name the site's datasets in this file; docs/datasets.md shows one.",
        name=FILE,
    )
    try:
        entries = DatasetsFile.model_validate(document.value)
    except ValidationError as error:
        wrong = sorted(
            (document.line_of(_plain(each["loc"])), _explain(document, each))
            for each in _causes(error)
        )
        raise DatasetFileError(
            "\n".join(f"{FILE}:{line}: {message}" for line, message in wrong)
        ) from None
    return Datasets(dict(_datasets(file, document, entries)))


def _datasets(
    file: Path, document: YamlDocument, entries: DatasetsFile
) -> Iterator[tuple[str, Dataset]]:
    for name, entry in entries.datasets.items():
        where = f"{FILE}:{document.line_of(('datasets', name))}"
        parts: Mapping[str, SourceEntry] = entry.splits or {WHOLE: entry}
        try:
            policy = entries.privacy.stricter(entry.privacy)
        except ValueError as error:
            line = document.line_of(("datasets", name, "privacy"))
            raise DatasetFileError(f"{FILE}:{line}: {error}") from None
        yield (
            name,
            Dataset(
                name,
                {split: _source(file.parent, each, where) for split, each in parts.items()},
                policy,
                split_column=entry.split_column,
                allowed=entry.columns,
                forbidden=frozenset(column.casefold() for column in entry.forbidden),
                kinds=dict(entry.kinds),
                where=where,
            ),
        )


def _source(folder: Path, entry: SourceEntry, where: str) -> Source:
    # each needs packages that a site without datasets does not have
    try:
        if entry.csv is not None:
            from prefect_federated.datasets.csv_file import CsvSource

            return CsvSource(folder / entry.csv)
        if entry.parquet is not None:
            from prefect_federated.datasets.parquet_file import ParquetSource

            return ParquetSource(folder / entry.parquet)
        if entry.function is not None:
            from prefect_federated.datasets.function import FunctionSource

            return FunctionSource(entry.function)
        from prefect_federated.datasets.database import DatabaseSource
        from prefect_federated.datasets.database_url import DatabaseUrl, Password

        kept = entry.password_from
        password = Password(kept.env, kept.file) if kept else Password()
        return DatabaseSource(
            DatabaseUrl(str(entry.url), password, folder, where), str(entry.query)
        )
    except ModuleNotFoundError as error:
        raise DatasetFileError(
            f"{where}: to read a dataset takes {error.name}, which is not installed at this site. "
            "Install prefect-federated[statistics]."
        ) from error


def _causes(error: ValidationError) -> Iterator[ErrorDetails]:
    """Yields pydantic's findings without those that only follow from another one."""
    found = error.errors(include_url=False)
    unknown = {each["loc"][:-1] for each in found if each["type"] == "extra_forbidden"}
    for each in found:
        around = each["loc"][:-1] if each["type"] == "missing" else each["loc"]
        if each["type"] in ("missing", "value_error") and around in unknown:
            continue  # a misspelt key makes its entry incomplete, too
        yield each


def _plain(location: Location) -> Location:
    """Returns where in the file a finding of pydantic's is, without its own additions."""
    return tuple(step for step in location if step != "[key]")


def _explain(document: YamlDocument, error: ErrorDetails) -> str:
    location, kind = _plain(error["loc"]), error["type"]
    key = str(location[-1]) if location else ""
    if kind == "missing":
        return f"`{key}` is missing. Write `{key}:`; docs/datasets.md shows a file."
    if kind == "extra_forbidden":
        known = list(_model_at(location[:-1]).model_fields)
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"Did you mean `{close[0]}`? " if close else ""
        return f"unknown key `{key}`. {hint}The keys here are {', '.join(known)}."
    if kind == "value_error":
        return str(error["ctx"]["error"])
    found = _describe(document.value_at(location))
    what = f"`{key}`" if location else "the file"
    return f"{what} is {found}: {error['msg'].removeprefix('Input ')}."


def _describe(value: object) -> str:
    """Returns what kind of value stands there, but not the value: it may be a secret."""
    if value is None:
        return "empty"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return "text" if isinstance(value, str) else f"the {type(value).__name__} {value!r}"


def _model_at(location: Location) -> type[BaseModel]:
    models: dict[str | int, type[BaseModel]] = {
        "privacy": PrivacyPolicy,
        "password_from": PasswordEntry,
        "noise": Noise,
    }
    if not location:
        return DatasetsFile
    if location[-1] in models:
        return models[location[-1]]
    return DatasetEntry if len(location) == 2 else SourceEntry
