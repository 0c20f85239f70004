"""All that sites withhold, as lines that a person reads: each says which site, what, and why.

What is the same for several columns, or for all splits of a site, is one line.
"""

from collections.abc import Iterable, Iterator

from prefect_federated.statistics.gathered import Gathered
from prefect_federated.statistics.schema import SplitFromSite, Withheld

EVERYTHING = "everything"
_NAMED = 5  # columns that a line names at most


def lines(gathered: Gathered) -> list[str]:
    """Returns all that sites withhold: 'site-4: withheld, 11 rows < minimum 20'."""
    return [line for site in gathered.sites for line in _of_site(gathered, site)]


def one_line(withheld: list[str], most: int = 3) -> str:
    """Returns some lines as one, for a state's message.

    First come groups, splits and columns that were asked for and are not there: as a rule they are
    spelled wrongly. Then come whole sites and splits.

    >>> one_line(["a: withheld, x", "b: withheld, y", "c: withheld, z"], most=2)
    'a: withheld, x; b: withheld, y; and 1 more'
    >>> one_line(["a: withheld, x", "a: groups withheld, there is no column 'sexx'"], most=1)
    "a: groups withheld, there is no column 'sexx'; and 1 more"
    """
    ordered = sorted(withheld, key=_rank)
    more = [f"and {len(withheld) - most} more"] if len(withheld) > most else []
    return "; ".join([*ordered[:most], *more])


def _rank(line: str) -> int:
    asked_for = (": groups withheld, ", ": split '", " withheld, there is no such column")
    if any(part in line for part in asked_for):
        return 0
    return 1 if ": withheld, " in line else 2


def _of_site(gathered: Gathered, site: str) -> Iterator[str]:
    for kept in gathered.withheld.get(site, []):
        yield _line(site, [], [], kept)
    splits = gathered.splits[site]
    by_entry: dict[tuple[str, Withheld], dict[str, list[str]]] = {}
    for split, part in splits.items():
        for where, columns, kept in _entries(part):
            by_entry.setdefault((where, kept), {})[split] = columns
    for (where, kept), of_splits in by_entry.items():
        for names, columns in _alike(of_splits):
            told = names if len(splits) > 1 and len(names) < len(splits) else []
            yield _line(site, [*told, *([where] if where else [])], columns, kept)


def _entries(part: SplitFromSite, group: str = "") -> Iterator[tuple[str, list[str], Withheld]]:
    """Yields group, columns and what is withheld of them; no columns where it is the whole."""
    for kept in dict.fromkeys(part.withheld):
        yield group, [], kept
    by_entry: dict[Withheld, list[str]] = {}
    for name, column in part.columns.items():
        for kept in dict.fromkeys(column.summary.withheld):
            if kept in part.withheld:  # as all of the split is
                continue
            by_entry.setdefault(kept, []).append(name)
    for kept in dict.fromkeys(part.co_moments.withheld if part.co_moments else []):
        yield group, [], kept
    for kept, columns in by_entry.items():
        yield group, columns, kept
    for name, its in part.groups.items():
        yield from _entries(its, f"group {name!r}")


def _alike(of_splits: dict[str, list[str]]) -> Iterable[tuple[list[str], list[str]]]:
    """Returns splits that have the same columns, with these."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for split, columns in of_splits.items():
        alike.setdefault(tuple(columns), []).append(split)
    return [(splits, list(columns)) for columns, splits in alike.items()]


def _line(site: str, where: list[str], columns: list[str], kept: Withheld) -> str:
    named = ", ".join(columns[:_NAMED])
    if len(columns) > _NAMED:
        named += f" and {len(columns) - _NAMED} more columns"
    place = ", ".join([site, *where, *([named] if named else [])])
    what = "withheld" if kept.what == EVERYTHING else f"{kept.what} withheld"
    return f"{place}: {what}, {kept.reason}"
