"""The site's part of linear models: built in, so that a site has nothing to write.

It answers `columns` and `moments` (which rows there are, and what they are scaled by), then `gram`
once or `newton` in each round, `evaluate` and `alone`. What leaves is in docs/linear-models.md.
"""

import numpy as np
from pydantic import TypeAdapter, ValidationError

from prefect_federated.errors import ConfigurationError, ModelUndetermined, UpdateRejected
from prefect_federated.executors import Site, executor
from prefect_federated.linear.design import Design
from prefect_federated.linear.fitting import Fit, Model, fit_gram, fit_newton, search
from prefect_federated.linear.gram import gram_of
from prefect_federated.linear.losses import Floats, first_sums, probabilities, sums, with_ones
from prefect_federated.linear.rank import dependent
from prefect_federated.messages import Tensors, Update
from prefect_federated.tabular.access import own_small_cell, policy_of
from prefect_federated.tabular.encoding import answer_moments, fit, moments_of
from prefect_federated.tabular.question import question_in
from prefect_federated.tabular.rows import Rows, describe, load_rows, schema_in
from prefect_federated.tabular.scores import scores

ROWS_A_COLUMN = 2
"""Training rows that a site must have for each encoded column, or sums could give them away."""
FEW = "few"
"""The blob in which a site says what few of its rows have."""
ALONE_STEPS = 25
"""Newton's steps at most of the model that a site trains alone."""
_NAMES = TypeAdapter(list[str])


@executor
def columns(model: Tensors, site: Site) -> Update:
    """Returns what the site's table has: columns, classes, rows."""
    return describe(site)


@executor
def moments(model: Tensors, site: Site) -> Update:
    """Returns count, mean and squared deviations of the training rows' columns."""
    return answer_moments(site)


@executor
def gram(model: Tensors, site: Site) -> Update:
    """Returns the products of the training rows' columns about their means."""
    rows, design, few = _rows(site)
    found = gram_of(design.matrix(rows.train), rows.train.label)
    return Update(found.tensors(), weight=rows.train.rows, blobs=few)


@executor
def newton(model: Tensors, site: Site) -> Update:
    """Returns gradient, curvature and deviance at the model's `coefficients`."""
    rows, design, few = _rows(site)
    matrix, label = with_ones(design.matrix(rows.train)), rows.train.label
    if site.config.get("start") is True:
        found = first_sums(matrix, label)
    else:
        found = sums(_model(site).loss, matrix, label, model["coefficients"])
    return Update(found.tensors(), weight=rows.train.rows, blobs=few)


@executor
def evaluate(model: Tensors, site: Site) -> Update:
    """Measures the model's `coefficients` on the test rows."""
    design = Design.of(site.config["encoding"])
    return _measured(site, load_rows(site), design, np.asarray(model["coefficients"], np.float64))


@executor
def alone(model: Tensors, site: Site) -> Update:
    """Trains the same model on the site's rows only, and measures it on the test rows.

    Columns that the site's rows do not determine are left out; where its classes are separated, the
    search stops there.
    """
    rows, schema, wanted = load_rows(site), schema_in(site.config), _model(site)
    design = Design(fit(schema, {site.name: moments_of(rows.train, schema)}))
    matrix, label = design.matrix(rows.train), rows.train.label
    own = gram_of(matrix, label)
    left_out = [] if wanted.alpha else list(dependent(own.products[:-1, :-1]))
    kept = [place for place in range(matrix.shape[1]) if place not in left_out]
    kept = kept[: max(0, len(label) - 2)]
    names = [design.names[place] for place in kept]
    found = _fit(wanted, names, matrix[:, kept], label)
    coefficients = np.zeros((wanted.lines, matrix.shape[1] + 1))
    coefficients[:, [0, *(place + 1 for place in kept)]] = found.coefficients
    return _measured(site, rows, design, coefficients)


def predicted(model: Model, matrix: Floats, coefficients: Floats) -> Floats:
    """Returns what the model says of rows, as `scores` takes it.

    Args:
        model: Which one.
        matrix: "`(rows, n_columns)`", encoded, without a column of ones.
        coefficients: "`(n_classes - 1, n_columns + 1)`".

    Returns:
        Values, counts or probabilities of the second class, "`(rows,)`"; "`(rows, n_classes)`"
        probabilities for "multinomial".
    """
    predictor = with_ones(matrix) @ coefficients.T
    if model.loss == "squared":
        return predictor[:, 0]
    if model.loss == "poisson":
        return np.exp(np.minimum(predictor[:, 0], 500))
    chances = probabilities(predictor)
    return chances if model.loss == "multinomial" else chances[:, 1]


def _fit(model: Model, names: list[str], matrix: Floats, label: Floats) -> Fit:
    if model.loss == "squared":
        return fit_gram(model, names, {"": gram_of(matrix, label)})
    found = search(model, names, len(label))
    ones = with_ones(matrix)
    for _ in range(ALONE_STEPS):
        at = found.asked.reshape(model.lines, -1)
        start = found.is_start
        try:
            found.take(
                {"": first_sums(ones, label) if start else sums(model.loss, ones, label, at)}
            )
        except ModelUndetermined:
            break
        if found.is_done:
            return fit_newton(model, names, found)
    return Fit(found.point.reshape(model.lines, -1), None, len(label), 0.0)


def _measured(site: Site, rows: Rows, design: Design, coefficients: Floats) -> Update:
    objective = question_in(site.config).objective
    prediction = predicted(_model(site), design.matrix(rows.test), coefficients)
    metrics = scores(objective, rows.test.label, prediction)
    return Update(metrics=metrics, metrics_weight=rows.test.rows)


def few_in(update: Update) -> list[str]:
    """Returns what few of a site's rows have, as the site has said it.

    Raises:
        UpdateRejected: it has said something else.
    """
    try:
        return _NAMES.validate_json(update.blobs.get(FEW, b"[]"))
    except ValidationError as error:
        raise UpdateRejected(
            f"site {update.site!r}: its {FEW!r} is no list of names. Run the same version of "
            "prefect-federated there."
        ) from error


def _rows(site: Site) -> tuple[Rows, Design, dict[str, bytes]]:
    """Returns the rows, how they are encoded, and what few of them have, as a blob.

    Raises:
        ConfigurationError: so few rows that their sums would give them away, or few rows that have
            something, and a `small_cell` in the site's own policy.
    """
    rows, design = load_rows(site), Design.of(site.config["encoding"])
    needed = ROWS_A_COLUMN * (len(design.names) + 1)
    if rows.train.rows < needed:
        raise ConfigurationError(
            f"site {site.name!r} has {rows.train.rows} training rows, and {len(design.names)} "
            f"encoded columns and a label: sums of fewer than {needed} rows could give them away, "
            "so it sends none. Name fewer `features`, or leave the site out."
        )
    policy = policy_of(site)
    few = design.few(rows.train, policy.small_cell)
    if few:
        told = f"fewer than {policy.small_cell} training rows have {', '.join(few)}"
        if own_small_cell(site):
            raise ConfigurationError(
                f"site {site.name!r}: {told}, and the site's own policy sets small_cell: it sends "
                "no sums of so few. Name `features` without these."
            )
        if site.round <= 1:
            site.log.warning("%s: what is sent tells more of these rows than of others", told)
    return rows, design, {FEW: _NAMES.dump_json(few)} if few else {}


def _model(site: Site) -> Model:
    return Model.from_json(site.config["linear"])
