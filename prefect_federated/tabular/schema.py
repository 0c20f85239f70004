"""What sites say of their columns, and what all of them agree on."""

from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from prefect_federated.datasets.kinds import CALLED, Kind
from prefect_federated.errors import SitesDisagree
from prefect_federated.tabular.question import TabularQuestion

_MOST_NAMED = 10
_OTHER_THAN_BINARY = "Name a label of two values; the objective for several is 'multiclass'"
_ONE_CLASS = "There is nothing to tell apart: name another `label`, or add a site with other values"


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Feature(_Said):
    """A column to predict from.

    Args:
        name: Its name.
        kind: "numeric", "boolean", "datetime" (seconds since 1970) or "categorical".
        categories: Of a categorical column, in the order of its numbers.
    """

    name: str
    kind: Kind
    categories: tuple[str, ...] = ()


class Label(_Said):
    """A label as one site has it.

    Args:
        kind: What the column holds.
        classes: Its values where it has classes: text, or numbers; those in too few rows are not
            named.
    """

    kind: Kind
    classes: tuple[str | float, ...] = ()


class SiteColumns(_Said):
    """What one site says of its table.

    Args:
        features: The columns that may be used.
        withheld: Column -> why it cannot be used here.
        label: The label, where it is here.
        train_rows: Rows to train on.
        test_rows: Rows to measure on.
        versions: Package -> version, of those that the job needs.
        problems: What keeps this site from taking part, in sentences.
        notes: What a person should know of this site's rows.
    """

    features: tuple[Feature, ...] = ()
    withheld: dict[str, str] = {}
    label: Label | None = None
    train_rows: int = 0
    test_rows: int = 0
    versions: dict[str, str] = {}
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> set[str]:
        """The columns that may be used."""
        return {feature.name for feature in self.features}


class Schema(_Said):
    """The columns that all sites of a job train on, alike.

    Args:
        features: In the order of the model's inputs.
        label: The label's name; None where there is none.
        classes: The label's values in the order of their numbers; () where it has no classes. Of
            two classes, the second is the one whose probability is predicted.
        notes: What a person should know.
    """

    features: tuple[Feature, ...]
    label: str | None = None
    classes: tuple[str | float, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The features' names."""
        return tuple(feature.name for feature in self.features)


def agree(columns: Mapping[str, SiteColumns], question: TabularQuestion) -> Schema:
    """Returns what all sites train on.

    Args:
        columns: Site -> what it says.
        question: What the job asks. With a `key`, sites hold different columns of the same rows,
            and the label is at one of them.

    Raises:
        SitesDisagree: which site has what, what the others have, and what to do.
    """
    by_problem: dict[str, list[str]] = {}
    for site in sorted(columns):
        for each in columns[site].problems:
            by_problem.setdefault(each.rstrip("."), []).append(site)
    problems = [f"{', '.join(sites)}: {each}" for each, sites in by_problem.items()]
    problems += _versions(columns)
    # a site whose policy keeps it out says nothing of its columns: that it lacks them is not so
    columns = {site: its for site, its in columns.items() if its.features or not its.problems}
    if question.key is None:
        names, notes, missing = _shared(columns, question)
        problems += missing
    else:
        names, notes, twice = _divided(columns, question)
        if not problems:  # a site that has no such key takes its real one for a feature
            problems += twice
    features = []
    for name in names:
        feature, wrong = _merged(name, columns)
        problems += wrong
        features.append(feature)
    classes, wrong = _classes(columns, question) if columns else ((), [])
    problems += wrong
    if not features and not problems:
        problems.append("there is no column to predict from; name `features`")
    if problems:
        more = len(problems) - _MOST_NAMED
        shown = [*problems[:_MOST_NAMED], *([f"and {more} more"] if more > 0 else [])]
        raise SitesDisagree(
            f"the sites cannot train on dataset {question.dataset!r} together: "
            f"{'; '.join(each.rstrip('.') for each in shown)}."
        )
    notes += [f"{site}: {each}" for site in sorted(columns) for each in columns[site].notes]
    return Schema(
        features=tuple(features), label=question.label, classes=classes, notes=tuple(notes)
    )


def _shared(
    columns: Mapping[str, SiteColumns], question: TabularQuestion
) -> tuple[list[str], list[str], list[str]]:
    """Returns the columns that all sites have, notes, and what is missing where."""
    there = [name for said in columns.values() for name in (*_names(said), *said.withheld)]
    wanted = list(dict.fromkeys(there if question.features is None else question.features))
    names, notes, problems = [], [], []
    for name in wanted:
        lacking = sorted(
            s for s, said in columns.items() if name not in {*said.names, *said.withheld}
        )
        kept = {
            s: said.withheld[name] for s, said in sorted(columns.items()) if name in said.withheld
        }
        if lacking:
            have = sorted(set(columns) - set(lacking))
            others = f"{_have(have)} it" if have else "no other site has it"
            problems.append(
                f"{_have(lacking)} no column {name!r} that may be used; {others}. Add it "
                "there, or name `features` without it"
            )
        elif kept and question.features is not None:
            problems += [
                f"{site}: column {name!r} cannot be used, {why}" for site, why in kept.items()
            ]
        elif kept:
            notes.append(
                f"column {name!r} is left out: "
                + "; ".join(f"{site}, {why}" for site, why in kept.items())
            )
        else:
            names.append(name)
    return names, notes, problems


def _divided(
    columns: Mapping[str, SiteColumns], question: TabularQuestion
) -> tuple[list[str], list[str], list[str]]:
    """Returns the columns of all sites, each of which one site has, notes, and what is wrong."""
    owners: dict[str, list[str]] = {}
    for site, said in sorted(columns.items()):
        for name in _names(said):
            if question.features is None or name in question.features:
                owners.setdefault(name, []).append(site)
    problems = [
        f"{_have(sites)} column {name!r}; with a key, each column is at one site. Forbid it "
        "at the others, or name `features` without it"
        for name, sites in owners.items()
        if len(sites) > 1
    ]
    problems += [
        f"no site has a column {name!r} that may be used"
        for name in question.features or ()
        if name not in owners
    ]
    notes = [
        f"column {name!r} is left out: {site}, {why}"
        for site, said in sorted(columns.items())
        for name, why in said.withheld.items()
    ]
    return list(owners), notes, problems


def _merged(name: str, columns: Mapping[str, SiteColumns]) -> tuple[Feature, list[str]]:
    said = {
        site: feature
        for site, of_site in sorted(columns.items())
        for feature in of_site.features
        if feature.name == name
    }
    kind, wrong = _kind(f"column {name!r}", {site: each.kind for site, each in said.items()})
    categories = sorted({each for feature in said.values() for each in feature.categories})
    return Feature(name=name, kind=kind, categories=tuple(categories)), wrong


def _kind(what: str, kinds: Mapping[str, Kind]) -> tuple[Kind, list[str]]:
    """Returns the kind that the sites' kinds make together, and what is wrong."""
    found = {kind for kind in kinds.values() if kind != "empty"}
    if len(found) < 2:
        return next(iter(found), "numeric"), []
    if found == {"numeric", "boolean"}:
        return "numeric", []
    by_kind = {
        kind: [site for site, its in sorted(kinds.items()) if its == kind] for kind in sorted(found)
    }
    told = " and ".join(f"{CALLED[kind]} at {_sites(sites)}" for kind, sites in by_kind.items())
    return "numeric", [
        f"{what} holds {told}. Set its kind under `kinds` in datasets.yaml there, or leave it out"
    ]


def _classes(
    columns: Mapping[str, SiteColumns], question: TabularQuestion
) -> tuple[tuple[str | float, ...], list[str]]:
    if question.label is None:
        return (), []
    labels = {site: said.label for site, said in sorted(columns.items()) if said.label is not None}
    if not labels:
        if any(said.problems for said in columns.values()):
            return (), []
        return (), [f"no site has the label {question.label!r}"]
    if question.key is not None and len(labels) > 1:
        return (), [f"{_have(labels)} the label {question.label!r}; with a key, it is at one site"]
    if not question.has_classes:
        return (), []
    if len({isinstance(each, str) for said in labels.values() for each in said.classes}) > 1:
        told = "; ".join(f"{site} has {_values(said.classes)}" for site, said in labels.items())
        return (), [
            f"the label {question.label!r} is text at some sites and a number at others: {told}"
        ]
    found = {each for said in labels.values() for each in said.classes}
    classes = tuple(sorted(found, key=lambda each: (isinstance(each, str), each)))
    told = "; ".join(f"{site} has {_values(said.classes)}" for site, said in labels.items())
    if question.objective == "binary" and len(classes) != 2:
        return classes, [
            f"the label {question.label!r} has {len(classes)} values where objective 'binary' "
            f"takes two: {told}. {_OTHER_THAN_BINARY if len(classes) > 2 else _ONE_CLASS}"
        ]
    if len(classes) < 2:
        return classes, [
            f"the label {question.label!r} has fewer than two values: {told}. {_ONE_CLASS}"
        ]
    return classes, []


def _versions(columns: Mapping[str, SiteColumns]) -> list[str]:
    problems = []
    for package in sorted({name for said in columns.values() for name in said.versions}):
        by_version: dict[str, list[str]] = {}
        for site, said in sorted(columns.items()):
            by_version.setdefault(said.versions.get(package, "none"), []).append(site)
        if len(by_version) > 1:
            told = ", ".join(f"{v} at {_sites(sites)}" for v, sites in sorted(by_version.items()))
            problems.append(f"{package} differs: {told}. Install the same version at all sites")
    return problems


def _names(said: SiteColumns) -> list[str]:
    return [feature.name for feature in said.features]


def _sites(sites: Iterable[str]) -> str:
    names = list(sites)
    shown = names if len(names) <= _MOST_NAMED else [*names[:_MOST_NAMED], f"{len(names)} in all"]
    return ", ".join(shown)


def _have(sites: Iterable[str]) -> str:
    names = list(sites)
    return f"{_sites(names)} {'has' if len(names) == 1 else 'have'}"


def _values(values: Sequence[str | float]) -> str:
    shown = [repr(each) if isinstance(each, str) else f"{each:g}" for each in values[:_MOST_NAMED]]
    return ", ".join([*shown, *(["..."] if len(values) > _MOST_NAMED else [])]) or "none"
