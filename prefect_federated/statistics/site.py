"""The built-in executor of statistics jobs: what a site computes, and lets out after protection.

Three site tasks, each of which reads the rows once at most: `describe` gives all but histograms,
`count` histograms on edges that all sites share, `refine` counts between further edges, for
quantiles. A database is asked for its aggregates in `describe`, and its rows are read in `count`
only; where the ranges of all columns are given beforehand, `describe` gives everything at once.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from prefect_federated.datasets import Dataset, Kind, Table, load_datasets
from prefect_federated.datasets.table import near
from prefect_federated.errors import FederatedError, StatisticsFailed
from prefect_federated.executors import Site, executor
from prefect_federated.messages import Tensors, Update
from prefect_federated.statistics.columns import nothing
from prefect_federated.statistics.exact import (
    Parts,
    exact_aggregate,
    exact_split,
    fine_split,
    takes_a_range,
)
from prefect_federated.statistics.groups import GroupedTally
from prefect_federated.statistics.histograms import nested_edges, shown_edges
from prefect_federated.statistics.ledger import FOLDER, Ledger
from prefect_federated.statistics.moments import Floats
from prefect_federated.statistics.protection import protect
from prefect_federated.statistics.question import FINE, KEY, Question, question_in
from prefect_federated.statistics.request import Request, SiteTaskKind
from prefect_federated.statistics.schema import (
    ColumnAtSite,
    FromSite,
    SplitFromSite,
    Summary,
    Withheld,
)
from prefect_federated.statistics.tally import Plan

with contextlib.suppress(ImportError):  # datasets say what to install
    import pandas  # noqa: F401  # takes long: better before the first site task than within it
    import pyarrow.compute  # noqa: F401

Numbers = tuple[SplitFromSite, SplitFromSite | None]
"""A split's exact numbers, and the counts in parts of the bins where there are any."""
Compute = Callable[["_Asked"], Numbers]

_ROWS_AT_ONCE = 50_000


class _Asked:
    """One split at this site, with what is asked of it.

    Args:
        question: What is asked.
        dataset: Of which dataset.
        table: The split's rows.
        split: Its name.
    """

    def __init__(self, question: Question, dataset: Dataset, table: Table, split: str) -> None:
        self.question = question
        self.dataset = dataset
        self.table = table
        self.split = split
        self.withheld: list[Withheld] = []
        wanted = table.columns if question.features is None else question.features
        self.kinds: dict[str, Kind] = {}
        for name in wanted:
            if name in table.columns:
                self.kinds[name] = table.columns[name]
            elif name not in table.unusable:
                why = f"there is no such column that may be used. {near(name, table.columns)}"
                self.withheld.append(Withheld(what=f"column {name!r}", reason=why))
        if not table.columns and not table.unusable:
            why = "it has no column that may be used"
            self.withheld.append(Withheld(what="everything", reason=why))
        self.group_by = self._group_by()

    def _group_by(self) -> str | None:
        name = self.question.group_by
        kind = self.table.columns.get(name) if name is not None else None
        if name is None or kind in ("categorical", "boolean"):
            return name
        if name in self.table.unusable:
            self.withheld.append(Withheld(what="groups", reason=self.table.unusable[name]))
            return None
        why = (
            f"column {name!r} holds {kind} values; group by a categorical or boolean column"
            if kind is not None
            else f"there is no column {name!r} that may be used. {near(name, self.table.columns)}"
        )
        self.withheld.append(Withheld(what="groups", reason=why))
        return None

    @property
    def unusable(self) -> dict[str, ColumnAtSite]:
        """The columns that the site has but cannot use: withheld, with the reason."""
        wanted = self.question.features
        return {
            name: ColumnAtSite(kind="empty", summary=nothing(why))
            for name, why in self.table.unusable.items()
            if wanted is None or name in wanted
        }

    @property
    def ranged(self) -> list[str]:
        """The columns that take a histogram."""
        return [name for name, kind in self.kinds.items() if takes_a_range(kind)]

    @property
    def has_all_ranges(self) -> bool:
        """Whether the question has the ranges of all columns that take one."""
        return bool(self.ranged) and set(self.ranged) <= self.question.ranges.keys()

    def edges(self) -> dict[str, Floats]:
        """Returns the edges on which histograms are asked for."""
        question = self.question
        return {
            name: nested_edges(shown_edges(*question.ranges[name], question.bins), question.fine)
            for name in self.ranged
            if name in question.ranges
        }

    def read(self, plan: Plan, of_groups: Plan | None = None) -> GroupedTally:
        """Reads the rows once and counts; of groups only where it is said what."""
        group_by = None if of_groups is None else self.group_by
        tally = GroupedTally(plan, of_groups or plan, group_by)
        columns = list(dict.fromkeys([*plan.kinds, *filter(None, [group_by])]))
        if columns:
            for frame in self.table.chunks(columns, rows=_ROWS_AT_ONCE):
                tally.add(frame)
        return tally

    def numbers(self, with_moments: bool, with_categories: bool, with_bins: bool) -> Numbers:
        """Reads the rows once and returns their numbers."""
        question, policy = self.question, self.dataset.policy
        edges = self.edges() if with_bins else {}
        plan = self.plan(edges, with_moments, with_categories)
        if not plan.kinds and self.group_by is None:  # no column is left to read
            return SplitFromSite(rows=None, columns={}), None
        tally = self.read(plan, self.of_groups(plan))
        parts = Parts(
            moments=with_moments,
            categories=with_categories,
            bins=question.bins,
            fine=question.fine,
            bins_for=policy.bins_for,
        )
        shown = exact_split(tally, parts)
        if question.fine == 1 or policy.noise is not None:  # noise in more bins is more noise
            return shown, None
        fine = replace(parts, moments=False, categories=False, is_fine=True)
        return shown, fine_split(exact_split(tally, fine))

    def plan(self, edges: Mapping[str, Floats], with_moments: bool, with_categories: bool) -> Plan:
        """Returns what is counted of all rows; only columns that it takes are read."""
        kinds = {
            name: kind
            for name, kind in self.kinds.items()
            if (with_categories if kind == "categorical" else with_moments or name in edges)
        }
        return Plan(
            kinds=kinds,
            edges=edges,
            bounds=self.dataset.policy.bounds,
            with_moments=with_moments,
            with_products=with_moments and self.question.correlation,
        )

    def of_groups(self, plan: Plan) -> Plan:
        """Returns what is counted of each group: no correlations, and not the group itself."""
        kinds = {name: kind for name, kind in plan.kinds.items() if name != self.group_by}
        return replace(plan, kinds=kinds, with_products=False)


@executor
def describe(model: Tensors, site: Site) -> Update:
    """Answers with all but histograms; with these, too, where their ranges are known already."""
    return _answer(site, "describe", _described)


@executor
def count(model: Tensors, site: Site) -> Update:
    """Answers with histograms between the given ranges; from a database, with sums, too."""
    return _answer(site, "count", _counted)


@executor
def refine(model: Tensors, site: Site) -> Update:
    """Answers with counts between the given edges."""
    return _answer(site, "refine", _refined)


def _answer(site: Site, kind: SiteTaskKind, compute: Compute) -> Update:
    try:
        return _protected(site, kind, compute)
    except FederatedError:
        raise
    except Exception as error:  # a boundary: what libraries say may hold values of rows
        site.log.exception("statistics: %s failed", kind)
        raise StatisticsFailed(
            f"the site task {kind!r} failed at this site with {type(error).__name__}. What it says "
            "may hold rows' values, so it is in the site's own log only: look there."
        ) from None


def _protected(site: Site, kind: SiteTaskKind, compute: Compute) -> Update:
    question = question_in(site.config)
    dataset = load_datasets(site.data).named(question.dataset)
    shown: dict[str, SplitFromSite] = {}
    fine: dict[str, SplitFromSite] = {}
    withheld: list[Withheld] = []
    for split in question.splits or dataset.splits:
        if split not in dataset.splits:
            why = f"there is no such split. {near(split, dataset.splits)}"
            withheld.append(Withheld(what=f"split {split!r}", reason=why))
            continue
        with dataset.table(split) as table:
            asked = _Asked(question, dataset, table, split)
            exact, parts_of_bins = compute(asked)
        if kind == "describe":
            columns = {**exact.columns, **asked.unusable}
            exact = exact.model_copy(update={"columns": columns})
        if kind != "describe" and not exact.columns:  # nothing of it was asked for
            continue
        told = [*exact.withheld, *asked.withheld]
        shown[split] = exact.model_copy(update={"withheld": told})
        if parts_of_bins is not None:
            fine[split] = parts_of_bins
    request = Request(
        dataset=dataset.name,
        kind=kind,
        splits=tuple(question.splits or ()),
        features=None if question.features is None else tuple(question.features),
        group_by=question.group_by,
        job=question.job,
    )
    ledger = Ledger(site.data / FOLDER)
    released = protect(FromSite(splits=shown, withheld=withheld), dataset.policy, request, ledger)
    blobs = {KEY: _json(released)}
    if fine:
        request = replace(request, kind="refine")
        blobs[FINE] = _json(protect(FromSite(splits=fine), dataset.policy, request, ledger))
    return Update(blobs=blobs)


def _json(answer: FromSite) -> bytes:
    return answer.model_dump_json(exclude_defaults=True).encode()


def _described(asked: _Asked) -> Numbers:
    if asked.has_all_ranges or not _is_pushed_down(asked):
        return asked.numbers(True, True, with_bins=asked.has_all_ranges)
    found = asked.table.aggregates(list(asked.kinds)) or {}
    columns = {name: exact_aggregate(aggregate) for name, aggregate in found.items()}
    rest = {name: kind for name, kind in asked.kinds.items() if name not in columns}
    if rest:  # what the database cannot compute is read
        columns |= exact_split(asked.read(Plan(rest)), Parts()).columns
    rows = max(_rows(column.summary) for column in columns.values())
    told = {name: columns[name] for name in asked.kinds}
    return SplitFromSite(rows=rows, columns=told), None


def _is_pushed_down(asked: _Asked) -> bool:
    """Whether a database computes what `describe` asks; its rows are then read in `count`."""
    return (
        asked.group_by is None
        and not asked.dataset.policy.bounds
        and bool(asked.kinds)
        and asked.table.aggregates([]) is not None
    )


def _rows(summary: Summary) -> float:
    return sum(n or 0.0 for n in (summary.count, summary.missing, summary.infinite))


def _counted(asked: _Asked) -> Numbers:
    return asked.numbers(_is_pushed_down(asked), False, with_bins=True)


def _refined(asked: _Asked) -> Numbers:
    wanted = asked.question.edges.get(asked.split, {})
    edges = {name: np.array(wanted[name]) for name in asked.ranged if name in wanted}
    tally = asked.read(asked.plan(edges, False, False))
    parts = Parts(moments=False, categories=False, bins_for=asked.dataset.policy.bins_for)
    return exact_split(tally, parts), None
