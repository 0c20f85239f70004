"""A small histogram of characters, for a cell of a table in a terminal."""

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.text import Text

from prefect_federated.statistics.distances import counts_of
from prefect_federated.statistics.schema import Summary

_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:-=+*#@"
_BARS, _FEWEST_BARS = 30, 7


class Histogram:
    """A histogram of characters, one a bin, drawn as well as the terminal can."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        marks = _BLOCKS if console.encoding.lower().startswith("utf") else _ASCII
        yield Text(bars(self._summary, marks, options.max_width), no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        width = len(bars(self._summary))
        return Measurement(min(width, _FEWEST_BARS), width)


def bars(summary: Summary, marks: str = _BLOCKS, most: int = _BARS) -> str:
    """Returns a character a bin or category: the higher, the more; a mark for any value at all.

    >>> from prefect_federated.statistics.schema import Histogram
    >>> bars(Summary(histogram=Histogram(edges=[0, 1, 2, 3], counts=[0, 1, 800])))
    ' ▁█'
    """
    if summary.categories:
        sizes = sorted((size or 0.0 for size in summary.categories.values()), reverse=True)
    elif summary.histogram is not None:
        sizes = counts_of(summary.histogram, summary.count).tolist()
        step = -(-len(sizes) // max(most, 1))
        sizes = [sum(sizes[place : place + step]) for place in range(0, len(sizes), step)]
    else:
        return ""
    highest, steps = max(sizes, default=0.0), len(marks) - 1
    if highest <= 0:
        return ""
    levels = [max(round(size / highest * steps), 1) if size > 0 else 0 for size in sizes]
    return "".join(marks[level] for level in levels[:most])
