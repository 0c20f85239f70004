"""The card of a fitted model: from which sites' data, how, how good, and what left the sites."""

from collections.abc import Iterator
from datetime import datetime

from pydantic import BaseModel, ConfigDict, JsonValue

from prefect_federated.tabular.scores import is_better


class SiteCard(BaseModel):
    """One site of a fitted model.

    Args:
        name: The site.
        train_rows: Rows that it trained on.
        test_rows: Rows that it measured on.
        metrics: Of the federation's model, on its test rows.
        alone: Of a model of its own training rows only, on the same test rows.
        alone_failed: Why there is no such model.
    """

    name: str
    train_rows: int
    test_rows: int
    metrics: dict[str, float] = {}
    alone: dict[str, float] = {}
    alone_failed: str | None = None

    @property
    def measured(self) -> list[str]:
        """The metrics' names."""
        return sorted({*self.metrics, *self.alone})

    def pair(self, metric: str) -> tuple[str, str]:
        """Returns a metric of the federation's model and of the site's own; a star: the better."""
        one, other = self.metrics.get(metric), self.alone.get(metric)
        told = ["" if value is None else f"{value:.4f}" for value in (one, other)]
        if one is not None and other is not None and one != other:
            told[not is_better(metric, one, other)] += " *"
        return told[0], told[1]


class ModelCard(BaseModel):
    """What a person must know of a fitted model; `card.json` holds it.

    Args:
        kind: "xgboost" or "sklearn": what reads the model's files.
        title: What it is.
        flow: The job's flow.
        run: The job's id.
        created: When.
        dataset: The dataset's name at the sites.
        label: What it predicts; None where there is none.
        classes: The label's values in the order of their numbers.
        features: What it predicts from, in order.
        objective: What the label is.
        rounds: How many it took.
        sites: Those that took part.
        metrics: Means over the sites, weighted by test rows.
        parameters: Of the training.
        versions: Of packages.
        leaves: What has left each site, in sentences.
        notes: What else a person should know.
        files: The model's files beside this one.
        tables: Title -> a table of what the model is: a row of names, then the others.
    """

    model_config = ConfigDict(extra="ignore")

    kind: str
    title: str
    flow: str
    run: str
    created: datetime
    dataset: str
    label: str | None
    classes: list[str | float] = []
    features: list[str]
    objective: str
    rounds: int
    sites: list[SiteCard]
    metrics: dict[str, float]
    parameters: dict[str, JsonValue]
    versions: dict[str, str]
    leaves: list[str]
    notes: list[str] = []
    files: list[str] = []
    tables: dict[str, list[list[str]]] = {}

    def markdown(self) -> str:
        """Returns the card as a page."""
        return "\n".join(self._lines()) + "\n"

    def comparison(self) -> list[tuple[str, ...]]:
        """Returns the table of sites: a line of names, then a row a site.

        For each metric the federation's model and the site's own; the better one has a star.
        """
        names = sorted({name for site in self.sites for name in site.measured})
        head = ["site", "training rows", "test rows"]
        for name in names:
            head += [name, *([f"{name}, alone"] if self._compares else [])]
        rows = [tuple(head)]
        for site in self.sites:
            row = [site.name, f"{site.train_rows:,}", f"{site.test_rows:,}"]
            for name in names:
                row += site.pair(name)[: 1 + self._compares]
            rows.append(tuple(row))
        return rows

    @property
    def _compares(self) -> bool:
        return any(site.alone or site.alone_failed for site in self.sites)

    def _lines(self) -> Iterator[str]:
        yield f"# {_plain(self.title)}"
        yield ""
        what = f"Predicts `{_plain(self.label)}`" if self.label else "Describes the rows"
        yield f"{what} of dataset `{_plain(self.dataset)}` from {len(self.features)} columns."
        if len(self.classes) == 2:
            yield ""
            yield f"The probability is that of `{_plain(str(self.classes[1]))}`."
        yield ""
        if self.metrics:
            told = ", ".join(f"{n} {value:.4f}" for n, value in sorted(self.metrics.items()))
            yield f"Mean over the sites, weighted by their test rows: {told}."
            yield ""
        yield "## Sites"
        yield ""
        yield "Measured on each site's own test rows, which no model was trained on."
        if self._compares:
            yield "`alone`: a model of the site's own training rows only. A star marks the better."
        yield ""
        head, *rows = self.comparison()
        yield _row(head)
        yield _row(["---"] * len(head))
        yield from (_row(row) for row in rows)
        failed = [s for s in self.sites if s.alone_failed]
        if failed:
            yield ""
            yield from (f"- {s.name} alone: {_plain(s.alone_failed or '')}" for s in failed)
        for title, (names, *table) in self.tables.items():
            yield f"\n## {_plain(title)}\n"
            yield _row(names)
            yield _row(["---"] * len(names))
            yield from (_row(row) for row in table)
        for title, lines in (
            ("What has left each site", self.leaves),
            ("Notes", self.notes),
            ("Parameters", [f"{n}: {value}" for n, value in sorted(self.parameters.items())]),
            ("Columns", self.features),
            ("Versions", [f"{name} {v}" for name, v in sorted(self.versions.items())]),
        ):
            if lines:
                yield f"\n## {title}\n"
                yield from (f"- {_plain(line)}" for line in lines)
        yield ""
        yield f"{self.rounds} rounds; run {self.run}, {self.created:%Y-%m-%d %H:%M} UTC."


def _row(cells: "list[str] | tuple[str, ...]") -> str:
    return f"| {' | '.join(_plain(cell).replace('*', chr(92) + '*') for cell in cells)} |"


def _plain(text: str) -> str:
    """Returns a name that sites or jobs chose as text that means nothing to Markdown or HTML."""
    line = " ".join(str(text).split())
    return line.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("`", "'")
