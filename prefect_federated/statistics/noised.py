"""What of one column may be released with noise: counts and sums, and what follows from these."""

from collections.abc import Mapping

from prefect_federated.datasets.kinds import Kind
from prefect_federated.datasets.policy import Bounds, PrivacyPolicy
from prefect_federated.statistics.columns import inner_bins, nothing, whole_counts
from prefect_federated.statistics.noise import Mechanism
from prefect_federated.statistics.schema import Histogram, Summary, Withheld
from prefect_federated.statistics.suppression import is_small


def bounds_of(column: str, kind: Kind, policy: PrivacyPolicy) -> Bounds | None:
    """Returns between which values a column lies, whatever the data; None if nobody has said."""
    return (0.0, 1.0) if kind == "boolean" else policy.bounds.get(column)


def numbers_of(exact: Summary, bounds: Bounds | None) -> int:
    """Returns how many numbers get noise; a row of counts of which a row is in one is one."""
    has_sums = exact.mean is not None and bounds is not None
    has_tables = (exact.histogram is not None) + (exact.categories is not None)
    return 1 + 2 * has_sums + has_tables


def noised_summary(
    exact: Summary,
    kind: Kind,
    bounds: Bounds | None,
    policy: PrivacyPolicy,
    mechanism: Mechanism,
    name_tables: int,
) -> Summary:
    """Returns a column's numbers with noise; what cannot have any is withheld.

    Args:
        exact: The column's numbers, of values within the bounds.
        kind: What it holds.
        bounds: Its bounds.
        policy: The site's.
        mechanism: Gives the noise.
        name_tables: How many tables of category names are released together.
    """
    if exact.count is None:
        return nothing("the site did not compute how many values there are")
    count, missing, infinite = (
        max(0.0, mechanism.count(number or 0.0))
        for number in (exact.count, exact.missing, exact.infinite)
    )
    if count < policy.minimum_rows:
        return nothing(f"fewer than {policy.minimum_rows} values")
    told: dict[str, object] = {"count": count, "missing": missing}
    told["infinite"] = None if exact.infinite is None else infinite
    withheld = list(exact.withheld)
    if exact.mean is not None:
        if bounds is None:
            why = "with noise, a site releases them of columns with `bounds` only"
            withheld.append(Withheld(what="sum, mean, variance, min, max", reason=why))
        elif not _is_within(exact, bounds):
            why = "the site's values lie outside of the bounds that it gave"
            withheld.append(Withheld(what="sum, mean, variance, min, max", reason=why))
        else:
            told |= _noised_moments(exact, count, bounds, mechanism)
    if exact.histogram is not None:
        told["histogram"], lines = _noised_histogram(exact, count, policy, mechanism)
        withheld += lines
    if exact.categories is not None:
        least = 0.0 if kind == "boolean" else mechanism.threshold(name_tables)
        noised = {
            name: max(0.0, mechanism.count(number or 0.0))
            for name, number in exact.categories.items()
        }
        least = max(least, float(policy.small_cell))
        told["categories"] = {name: number for name, number in noised.items() if number >= least}
        if least > 0:
            withheld.append(_rare("categories", least))
    return Summary.model_validate({**told, "noise": str(mechanism), "withheld": withheld})


def _rare(what: str, least: float) -> Withheld:
    """Returns a line that is there and the same whether or not there are any: one row decides."""
    why = f"those with fewer than {least:.0f} rows, noise included, if there are any; not named"
    return Withheld(what=f"rare {what}", reason=why)


def _is_within(exact: Summary, bounds: Bounds) -> bool:
    low, high = bounds
    return exact.min is not None and exact.max is not None and low <= exact.min <= exact.max <= high


def _noised_moments(
    exact: Summary, count: float, bounds: Bounds, mechanism: Mechanism
) -> dict[str, object]:
    """Returns sum, mean and variance from noised sums of deviations from the bounds' middle."""
    low, high = bounds
    middle, half = (low + high) / 2, (high - low) / 2
    values, mean = exact.count or 0.0, exact.mean or 0.0
    m2 = (exact.variance or 0.0) * max(values - 1, 0)
    first = mechanism.sum(values * (mean - middle), half)
    second = mechanism.sum(m2 + values * (mean - middle) ** 2, half**2)
    first = min(max(first, -half * count), half * count)
    variance = max(0.0, (second - first**2 / count) / (count - 1)) if count > 1 else None
    if variance is not None:
        # No values between the bounds vary more.
        variance = min(variance, half**2 * count / (count - 1))
    return {
        "sum": first + middle * count,
        "mean": middle + first / count,
        "variance": variance,
        "std": None if variance is None else variance**0.5,
        "min": low,
        "max": high,
    }


def _noised_histogram(
    exact: Summary, count: float, policy: PrivacyPolicy, mechanism: Mechanism
) -> tuple[Histogram | None, list[Withheld]]:
    histogram = exact.histogram
    assert histogram is not None
    counts = whole_counts(histogram, exact)
    bins = inner_bins(histogram)
    most = policy.bins_for(count, bins)
    if counts is None or bins > most:
        why = (
            "its bins do not hold all values"
            if counts is None
            else f"{bins} bins are more than {most} for so few values"
        )
        return None, [Withheld(what="histogram", reason=why)]
    noised = [max(0.0, mechanism.count(number)) for number in counts]
    told = [None if is_small(number, policy.small_cell) else number for number in noised]
    gone = sum(number is None for number in told)
    lines = []
    if gone:
        why = f"fewer than {policy.small_cell} rows, noise included"
        lines = [Withheld(what=f"{gone} of {len(told)} bins of the histogram", reason=why)]
    return Histogram(edges=histogram.edges, counts=told), lines


def noised_group_rows(
    rows: Mapping[str, float], policy: PrivacyPolicy, mechanism: Mechanism, name_tables: int
) -> tuple[dict[str, float], list[Withheld]]:
    """Returns the groups that are released, with their rows, and a line on all others."""
    least = max(mechanism.threshold(name_tables), policy.minimum_rows)
    noised = {name: mechanism.count(count) for name, count in rows.items()}
    told = {name: count for name, count in noised.items() if count >= least}
    return told, [_rare("groups", least)]
