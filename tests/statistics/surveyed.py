"""A statistics job without Prefect: the site tasks of several sites, and what is merged of them."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from prefect_federated.executors import Site
from prefect_federated.messages import Tensors, Update
from prefect_federated.statistics import site as executors
from prefect_federated.statistics.answers import answers_in
from prefect_federated.statistics.gathered import Gathered
from prefect_federated.statistics.merge import About, deviations, statistics_of
from prefect_federated.statistics.question import Question
from prefect_federated.statistics.schema import Statistics

OPEN = (
    "{minimum_rows: 1, small_cell: 0, small_missing: 0, rows_per_bin: 1, rows_per_category: 1, "
    "minmax_noise: 0, changed_rows: 0}"
)
"""A policy that lets everything out, so that numbers can be compared."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Executor = Callable[[Tensors, Site], Update]
TASKS: Mapping[str, Executor] = {
    "describe": executors.describe,
    "count": executors.count,
    "refine": executors.refine,
}


def write_sites(folder: Path, datasets: Mapping[str, str]) -> dict[str, Path]:
    """Writes each site's datasets.yaml into a folder of its own; returns site -> folder."""
    folders = {}
    for site, text in datasets.items():
        folders[site] = folder / site
        folders[site].mkdir(parents=True, exist_ok=True)
        (folders[site] / "datasets.yaml").write_text(text)
    return folders


def asked(folder: Path, kind: str, question: Question) -> Update:
    """Has a site do a site task."""
    site = Site(folder.name, folder, folder / "state", config=question.config())
    return TASKS[kind]({}, site)


def survey(
    folders: Mapping[str, Path],
    question: Question,
    quantiles: Sequence[float] = QUANTILES,
    refinements: int = 4,
) -> Statistics:
    """Asks the sites as the flow does, and merges their answers."""
    gathered = Gathered()

    def ask(kind: str, question: Question, sites: Sequence[str]) -> None:
        for site in sites:
            answer, fine = answers_in(asked(folders[site], kind, question).blobs, question, kind)
            if kind == "refine":
                gathered.refine(site, answer)
            else:
                gathered.add(site, answer, fine)

    ask("describe", question, list(folders))
    ranges = gathered.ranges(question.ranges, {})
    if sites := gathered.incomplete(ranges):
        ask("count", question.model_copy(update={"ranges": ranges}), sites)
    for _ in range(refinements):
        if not (edges := gathered.to_refine(quantiles, deviations(gathered), 16)):
            break
        more = question.model_copy(update={"ranges": {}, "edges": edges})
        ask("refine", more, gathered.sites)
    about = About(question.dataset, "test", "run", datetime.now(UTC), quantiles, question.group_by)
    return statistics_of(gathered, about)
