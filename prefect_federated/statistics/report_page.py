"""What the parts of the report share: the result, the pictures so far, and how they are framed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from prefect_federated.statistics.figures import Figure, styles
from prefect_federated.statistics.html_tables import Markup, text
from prefect_federated.statistics.schema import Statistics


@dataclass(frozen=True)
class Section:
    """A part of the report under a heading of its own.

    Args:
        key: Id of the heading, for links.
        title: The heading.
        body: What is below it.
    """

    key: str
    title: str
    body: Markup


@dataclass
class Page:
    """A report that is being made.

    Args:
        result: What is reported.
        figures: Numbers of the pictures, in their order in the page.
    """

    result: Statistics
    figures: list[Figure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sites = list(result_sites(self.result))
        self.answering = [
            site
            for site in self.sites
            if site not in self.result.sites or self.result.sites[site].state == "answered"
        ]
        self.look: Mapping[str, tuple[str, str]] = styles(self.answering)
        self.features = list(
            dict.fromkeys(name for split in self.result.splits.values() for name in split.features)
        )
        self._anchors = {name: f"feature-{place}" for place, name in enumerate(self.features)}
        self._keys = count(1)

    def key(self) -> str:
        """Returns an id that the page does not have yet."""
        return str(next(self._keys))

    def anchor(self, feature: str) -> str:
        """Returns the id of a feature's heading."""
        return self._anchors[feature]

    def picture(self, figure: Figure | None, words: str, tables: Sequence[Markup | None]) -> Markup:
        """Returns a picture with its tables below, folded; without a picture, the tables alone.

        Args:
            figure: What is drawn.
            words: What a screen reader says in its place.
            tables: The same numbers.
        """
        there = [each for each in tables if each]
        folded = (
            f'<details class="numbers"><summary>Table: {text(words.partition(".")[0])}</summary>'
            f"{''.join(there)}</details>"
            if there
            else ""
        )
        if figure is None:
            return Markup(folded)
        self.figures.append(figure)
        return Markup(
            f'<figure><div class="plot" role="img" data-figure="{len(self.figures) - 1}" '
            f'style="height:{figure["height"]}px" aria-label="{text(words)}"></div></figure>'
            f"{folded}"
        )

    def by_split(self, parts: Mapping[str, Markup], heading: str = "h3") -> Markup:
        """Returns what is there for each split; the page's switch shows one at a time."""
        if len(self.result.splits) == 1:
            return Markup("".join(parts.values()))
        return Markup(
            "".join(
                f'<div class="split" data-split="{self.split_number(split)}">'
                f"<{heading}>{text(split)}</{heading}>{part}</div>"
                for split, part in parts.items()
            )
        )

    def split_number(self, split: str) -> int:
        """Returns the place of a split among them."""
        return list(self.result.splits).index(split)


def result_sites(result: Statistics) -> dict[str, None]:
    """Returns all sites' names once: those that were asked first, in their order."""
    names = dict.fromkeys(result.sites)
    for split in result.splits.values():
        names.update(dict.fromkeys(split.sites))
    return names


def unfolded(lines: Sequence[str], most: int) -> Markup:
    """Returns a list of which the first lines are seen, and the others can be unfolded."""
    shown, rest = (
        "".join(f"<li>{text(line)}</li>" for line in some) for some in (lines[:most], lines[most:])
    )
    parts = [f'<ul class="withheld">{shown}</ul>' if shown else ""]
    if rest:
        parts.append(
            f"<details><summary>{len(lines) - most} more</summary>"
            f'<ul class="withheld">{rest}</ul></details>'
        )
    return Markup("".join(parts))
