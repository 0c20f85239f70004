"""A table that fits the terminal, whatever its width: no cell is cut.

Where there is no room, columns that matter less are left out, and named; the others go below each
other. Only names that are longer than a third of the line are broken.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from prefect_federated.statistics.wording import WITHHELD, clean

_BETWEEN = 3
"""Characters from one column to the next."""
_FEWEST_BARS = 12


@dataclass
class Fitted:
    """A table whose first column are names.

    Args:
        headers: One a column.
        title: What it shows.
        left_out_first: Headers of columns that are left out where there is no room, in this order.
        words: Headers of columns that hold words; the others hold numbers.
    """

    headers: Sequence[str]
    title: str | None = None
    left_out_first: Sequence[str] = ()
    words: Sequence[str] = ()
    rows: list[list[RenderableType]] = field(default_factory=list)

    def add_row(self, *cells: RenderableType) -> None:
        """Adds a row; texts are taken as they are, other cells are as wide as they can be."""
        self.rows.append([cell_of(cell) if isinstance(cell, str) else cell for cell in cells])

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        room = options.max_width
        widths = [self._width(place) for place in range(len(self.headers))]
        widths[0] = min(widths[0], max(room // 3, len("all sites")))
        shown, out = list(range(len(self.headers))), list[str]()
        for header in self.left_out_first:
            if _total(widths[place] for place in shown) > room:
                shown.remove(self.headers.index(header))
                out.append(header)
        title = self.title
        for block in _blocks(shown, widths, room):
            yield self._table(block, widths, title)
            title = None
        if out:
            yield Text(f"Left out, as the terminal is narrow: {', '.join(out)}\n", style="dim")

    def _width(self, place: int) -> int:
        """Returns how wide a column is; one of pictures at least."""
        cells = [row[place] for row in self.rows if place < len(row)]
        widths = [cell_len(cell.plain) if isinstance(cell, Text) else _FEWEST_BARS
                  for cell in cells]  # fmt: skip
        return max([cell_len(clean(self.headers[place])), *widths])

    def _table(self, block: Sequence[int], widths: Sequence[int], title: str | None) -> Table:
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for place in block:
            header = self.headers[place]
            is_pictures = any(
                place < len(row) and not isinstance(row[place], Text) for row in self.rows
            )
            is_words = place == 0 or header in self.words or is_pictures
            table.add_column(
                Text(clean(header)),
                justify="left" if is_words else "right",
                overflow="fold",
                min_width=widths[place],
                max_width=None if place or is_pictures else widths[place],
            )
        for row in self.rows:
            table.add_row(*(row[place] for place in block if place < len(row)))
        return table


def cell_of(words: str) -> Text:
    """Returns a cell whose square brackets rich does not read as markup."""
    return Text(clean(words), style="yellow" if words.startswith(WITHHELD) else "")


def _total(widths: Iterator[int]) -> int:
    return sum(width + _BETWEEN for width in widths)


def _blocks(shown: Sequence[int], widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Yields the columns of each table: the first, and as many of the others as there is room."""
    first, *others = shown
    block = [first]
    for place in others:
        if len(block) > 1 and _total(widths[each] for each in [*block, place]) > room:
            yield block
            block = [first]
        block.append(place)
    yield block
