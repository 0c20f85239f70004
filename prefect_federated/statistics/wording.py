"""How numbers read for people: in the report, the artifact and the terminal alike."""

import math
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime

from prefect_federated.datasets.kinds import Kind
from prefect_federated.statistics.schema import Feature, SiteState, Summary, Withheld

NONE = "none"
"""Stands where there is no number because there are no values."""
WITHHELD = "withheld"
"""Stands where a site keeps a number back."""

_DAY_S = 86_400.0
_UNITS = ((_DAY_S * 365.25, "years"), (_DAY_S, "days"), (3600.0, "h"), (60.0, "min"))
_LONGEST = 60
_KEPT = ("everything", *(what for what in Summary.model_fields if what != "withheld"))


def number(value: float | None, kind: Kind = "numeric") -> str:
    """Returns a value of a column; of datetimes, the date.

    >>> number(246.587), number(1e9 + 0.5), number(0), number(-0.000123)
    ('246.6', '1,000,000,000.5', '0', '-0.000123')
    >>> number(1700000000.0, "datetime")
    '2023-11-14 22:13'
    """
    if value is None:
        return NONE
    if kind == "datetime":
        return _moment(value)
    if value == 0:
        return "0"
    if 1e4 <= abs(value) < 1e15:
        text = f"{value:,.2f}"
        return text.rstrip("0").rstrip(".")
    return f"{value:.4g}"


def spread(value: float | None, kind: Kind = "numeric") -> str:
    """Returns a difference of values, such as a standard deviation; of datetimes, a duration.

    >>> spread(2 * 86400.0, "datetime")
    '2 days'
    """
    if value is None or kind != "datetime":
        return number(value)
    for size, unit in _UNITS:
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} s"


def count(value: float | None) -> str:
    """Returns how many; noised ones are rounded.

    >>> count(1234.0), count(11.7), count(None)
    ('1,234', '12', 'none')
    """
    return NONE if value is None else f"{value:,.0f}"


def percent(part: float | None, whole: float | None) -> str:
    """Returns a share; small ones with a digit after the point, and 0 or 100 only where it is so.

    >>> percent(611, 920), percent(1, 304), percent(0, 5), percent(999.9, 1000), percent(1, 0)
    ('66 %', '0.3 %', '0 %', '> 99 %', 'none')
    """
    if part is None or not whole:
        return NONE
    share = 100 * part / whole
    if 99.5 <= share < 100:
        return "> 99 %"
    if share <= 0 or share >= 9.95:
        return f"{max(share, 0):.0f} %"
    return f"{share:.1f} %" if share >= 0.05 else "< 0.1 %"


def total(summary: Summary) -> float | None:
    """Returns the rows of a column: with a value, without one, and with an infinite one."""
    if summary.count is None or summary.missing is None:
        return None
    return summary.count + summary.missing + (summary.infinite or 0.0)


def keeps_back(withheld: Sequence[Withheld], what: str) -> str | None:
    """Returns why a number is withheld; None if it is not.

    Args:
        withheld: What a site keeps back of a column.
        what: A field of `Summary`.
    """
    wanted = {"std": ("std", "variance")}.get(what, (what,))
    for line in withheld:
        named = line.what.replace(",", " ").split()
        if line.what == "everything" or any(each in named for each in wanted):
            return line.reason
    return None


def overall_of(feature: Feature) -> Summary:
    """Returns a column's numbers over all sites; withheld is only what every site withholds.

    A number that one site withholds is of the other sites, and there is none if they have no
    values.
    """
    sites = list(feature.by_site.values())
    if not sites:
        return feature.overall
    kept = [what for what in _KEPT if all(keeps_back(each.withheld, what) for each in sites)]
    if not kept:
        return feature.overall.model_copy(update={"withheld": []})
    named = kept[:1] if kept[0] == "everything" else kept
    reasons = dict.fromkeys(keeps_back(each.withheld, named[0]) or "" for each in sites)
    line = Withheld(what=", ".join(named), reason=f"by every site: {listed(list(reasons), 3)}")
    return feature.overall.model_copy(update={"withheld": [line]})


def not_there(site: str, state: SiteState) -> str:
    """Returns that a site did not answer, and why, as a part of a sentence.

    >>> not_there("c", SiteState(state="failed", reason="it has no tools."))
    'c failed: it has no tools'
    """
    verb = "failed" if state.state == "failed" else f"is {state.state}"
    return clean(f"{site} {verb}: {' '.join(state.reason.split())}").rstrip(".: ")


def listed(names: Sequence[str], most: int = 6) -> str:
    """Returns names as a sentence has them.

    >>> listed(["a"]), listed(["a", "b", "c"]), listed(list("abcdefghi"), most=3)
    ('a', 'a, b and c', 'a, b, c and 6 more')
    """
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def weighty_first(lines: Sequence[str]) -> list[str]:
    """Returns lines on what is withheld, those first that tell of a whole site or column.

    >>> weighty_first(["a, x: 3 bins withheld, few", "b: withheld, 11 rows < minimum 20"])
    ['b: withheld, 11 rows < minimum 20', 'a, x: 3 bins withheld, few']
    """
    return sorted(lines, key=lambda line: ": withheld, " not in line)


def clean(text: str) -> str:
    """Returns a name without what a screen does not show or shows elsewhere, such as control
    characters and marks that turn the direction of text around.

    >>> clean("chol\\x00\\u202egnp")
    'chol��gnp'
    """
    return "".join("�" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text)


def short(text: str, most: int = _LONGEST) -> str:
    """Returns a name, cut where it is longer than a line has room for."""
    text = clean(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _moment(seconds: float) -> str:
    if not math.isfinite(seconds):
        return NONE
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.4g} s since 1970"
    return f"{moment:%Y-%m-%d}" if seconds % _DAY_S == 0 else f"{moment:%Y-%m-%d %H:%M}"
