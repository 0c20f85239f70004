"""How each site's model, and the global one, does at each site, on the site's own data.

One model after the other goes to all sites, which answer with what their executor's "evaluate"
measures of it. What comes of it is a `Matrix`: a file beside the job's model (`cross-site.json`),
and tables and pictures in the Prefect UI. The job's table gets no rows of it.
"""

import base64
import json
import re

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from prefect_federated.cross_site_matrix import Matrix, Measured, ModelRow
from prefect_federated.errors import SnapshotCorrupt, SnapshotFailed
from prefect_federated.messages import SiteFailure, Tensors, Update
from prefect_federated.tasks.federation import Federation
from prefect_federated.tasks.site_models import SiteModels
from prefect_federated.tasks.storage import path_in_storage, put

__all__ = ["Matrix", "SiteModels", "cross_site_evaluation"]

_FILE = "cross-site.json"
_PICTURES = 4  # metrics of which there is a picture at most; all have a table


def cross_site_evaluation(
    fed: Federation, site_models: SiteModels, model: Tensors, round: int = 0
) -> Matrix:
    """Has every model evaluated at every site, publishes what comes of it, and returns it.

    What an update does not hold of the model, such as a site's own tensors, is the global model's.
    A site that fails or does not answer is a value of the matrix, with its reason.

    Args:
        fed: The running federation.
        site_models: The sites' models.
        model: The global model.
        round: The last round that is in it.

    Raises:
        SnapshotFailed: the file could not be written.
        StaleController: a newer attempt of the job has taken over.
    """
    with fed.untold():
        matrix = _matrix(fed, site_models, model, round)
    _publish(fed, matrix)
    return matrix


def _matrix(fed: Federation, site_models: SiteModels, model: Tensors, round: int) -> Matrix:
    sites, kept = tuple(sorted(fed.hub.sites)), site_models.sites
    rows = [ModelRow(None, round, _evaluated(fed, model))]
    for site, stored in kept.items():
        try:
            own = {**model, **site_models.read(site)}
        except SnapshotCorrupt as error:
            cells = {each: SiteFailure(each, str(error)) for each in sites}
            rows.append(ModelRow(site, stored.round, cells))
            continue
        rows.append(ModelRow(site, stored.round, _evaluated(fed, own)))
        del own  # before the next one is read
    return Matrix(tuple(rows), sites, tuple(site for site in sites if site not in kept))


def _evaluated(fed: Federation, model: Tensors) -> dict[str, Measured | SiteFailure]:
    """Returns site -> what it has measured of a model, or why it has not; for all sites."""
    hub, cells = fed.hub, dict[str, Measured | SiteFailure]()
    # Also those that are left out by now: that a site fails with one model says nothing of others.
    there = {*hub.reachable(fed.job.lost_after_s), *hub.attached()}
    asked = sorted(site for site in there if hub.can(site, "evaluate"))
    if asked:
        replies = fed.broadcast(
            "evaluate", model, sites=asked, quorum=0, late_weight=0, reported=False
        )
        for reply in replies:
            if isinstance(reply, Update):
                weight = reply.metrics_weight
                weight = reply.weight if weight is None else weight
                cells[reply.site] = Measured(dict(reply.metrics), weight)
            else:
                cells[reply.site] = reply
    for site in hub.sites:
        why = "it is not connected" if site not in there else "its executor does no 'evaluate'"
        cells.setdefault(site, SiteFailure(site, why))
    return cells


def _publish(fed: Federation, matrix: Matrix) -> None:
    path = f"{fed.hub.job}/{_FILE}"
    try:
        put(path, json.dumps(matrix.to_json(), indent=1).encode())
    except Exception as error:  # a storage may raise anything
        raise SnapshotFailed(
            f"{path} could not be written: {type(error).__name__}: {error}. Make room in Prefect's "
            "result storage, or mend what keeps it from being written to."
        ) from error
    log = get_run_logger()
    for row in matrix.rows:
        means = "".join(f", {name} {row.mean(name):.4g}" for name in matrix.metrics)
        answered = sum(isinstance(cell, Measured) for cell in row.cells.values())
        log.info("%s at %d/%d sites%s", row.name, answered, len(matrix.sites), means)
    name = re.sub(r"[^a-z0-9]+", "-", (flow_run.flow_name or "job").lower())
    try:
        create_markdown_artifact(
            _page(matrix, path_in_storage(path)),
            key=f"{name}-cross-site",
            description="How each model does at each site's own data",
        )
    except Exception:  # a job does not fail because a picture of it could not be made
        log.warning("the tables of the evaluation at all sites could not be shown", exc_info=True)


def _page(matrix: Matrix, path: str) -> str:
    parts = [
        "# Every model at every site",
        "A row is a model: the global one, and what each site sent in the last round that counted "
        "it. A column is the site at whose data the model was evaluated; in bold, a model at the "
        "site that trained it. The mean is over the sites that answered, weighted by their "
        f"examples. All of this, and more digits, is in `{path}`.",
    ]
    for place, metric in enumerate(matrix.metrics):
        parts += [f"## {metric}", matrix.markdown(metric)]
        if place < _PICTURES:
            parts += _picture(matrix, metric)
    if missing := matrix.markdown_of_failures():
        parts += ["## What is missing", missing]
    return "\n\n".join(parts) + "\n"


def _picture(matrix: Matrix, metric: str) -> list[str]:
    try:
        from prefect_federated.adapters.matrix_picture import matrix_png
    except ImportError:
        get_run_logger().info("no picture of the matrix: install prefect-federated[plot]")
        return []
    models = [row.name for row in matrix.rows]
    places = {site: column for column, site in enumerate(matrix.sites)}
    own = [
        (place, places[row.site])
        for place, row in enumerate(matrix.rows)
        if row.site is not None and row.site in places
    ]
    picture = matrix_png(metric, models, matrix.sites, matrix.values(metric), own)
    encoded = base64.b64encode(picture).decode()
    return [f"![{metric}: the numbers of the table above](data:image/png;base64,{encoded})"]
