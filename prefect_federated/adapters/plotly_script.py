"""plotly.js, for pages that need no network. Installed with the extra `statistics`."""

from functools import cache


@cache
def plotly_script() -> str:
    """Returns the source of plotly.js, about 5 MB; it is read once a process."""
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source
