"""What the runs of `benchmarks.heterogeneity` gave: kept in a file, summed up, and drawn."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.accuracy_pictures import accuracy_png
from benchmarks.machine import describe_machine

ALGORITHMS = ("fedavg", "fedprox", "fedopt", "scaffold")


@dataclass(frozen=True)
class Settings:
    """What all runs of a comparison have in common.

    Args:
        data: Where the images are.
        sites: Number of sites.
        rounds: Rounds of each run.
        epochs: Passes of each site over its images in a round.
        steps_per_epoch: Steps that a pass takes at each site.
        lr: Learning rate at the sites.
        subset: Training images that are drawn from the set; all if 0.
        test_subset: Test images that are drawn; all if 0.

    Raises:
        ValueError: a number is out of its range.
    """

    data: str
    sites: int
    rounds: int
    epochs: int
    steps_per_epoch: int
    lr: float
    subset: int
    test_subset: int

    def __post_init__(self) -> None:
        for name in ("sites", "rounds", "epochs", "steps_per_epoch"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be 1 or more.")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"--lr is {self.lr}; it must be above 0.")
        if min(self.subset, self.test_subset) < 0:
            raise ValueError("--subset and --test-subset must be 0 (all) or more.")


@dataclass(frozen=True)
class Run:
    """One job: an algorithm on one division of the images."""

    algorithm: str
    alpha: float
    seed: int


@dataclass(frozen=True)
class Result:
    """What one run gave.

    Args:
        accuracy: Of the global model on the test images, after each round.
        site_images: Training images at each site.
        seconds: How long the job took.
        failures: Site tasks that failed.
        error: Why the job ended without a model; empty if it did not.
    """

    accuracy: list[float] = field(default_factory=list)
    site_images: list[int] = field(default_factory=list)
    seconds: float = 0.0
    failures: int = 0
    error: str = ""


def planned(alphas: Sequence[float], algorithms: Sequence[str], seeds: int) -> list[Run]:
    """Returns the runs: FedAvg, or else the first algorithm, for each alpha; all at the smallest.

    Raises:
        ValueError: an unknown algorithm, an alpha that is not above 0, or nothing to do.
    """
    if unknown := [name for name in algorithms if name not in ALGORITHMS]:
        raise ValueError(
            f"there is no algorithm {unknown[0]!r}; choose from {', '.join(ALGORITHMS)}."
        )
    if not algorithms or not alphas or seeds < 1:
        raise ValueError("name an algorithm, an alpha and 1 seed at least.")
    if wrong := [alpha for alpha in alphas if not 0 < alpha < float("inf")]:
        raise ValueError(f"alpha is {wrong[0]}; it must be above 0.")
    first, *others = sorted(dict.fromkeys(algorithms), key=lambda name: name != "fedavg")
    settings = [(first, alpha) for alpha in sorted(set(alphas), reverse=True)]
    settings += [(name, min(alphas)) for name in others]
    return [Run(name, alpha, seed) for seed in range(seeds) for name, alpha in settings]


class Record:
    """Results by run, in a JSON file that is whole at any time.

    Args:
        file: Where they are kept; in memory alone if None.
        settings: Of all runs.
        results: What is known so far.
        machine: What they ran on.
    """

    def __init__(
        self,
        file: Path | None,
        settings: Settings,
        results: dict[Run, Result],
        machine: dict[str, object],
    ) -> None:
        self._file = file
        self._settings = settings
        self._results = results
        self._machine = machine

    @staticmethod
    def at(file: Path | None, settings: Settings) -> "Record":
        """Returns what a file holds of these settings; runs that failed are done again.

        Raises:
            ValueError: the file holds something else.
        """
        if file is None or not file.exists():
            return Record(file, settings, {}, describe_machine())
        try:
            kept = json.loads(file.read_text())
            known = Settings(**kept["settings"])
            results = {
                Run(**{key: row.pop(key) for key in ("algorithm", "alpha", "seed")}): Result(**row)
                for row in kept["runs"]
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is not of this program ({error!r}): name another.") from error
        if known != settings:
            raise ValueError(
                f"{file} holds runs with other settings: {known}. Name another file for {settings}."
            )
        done = {run: result for run, result in results.items() if not result.error}
        return Record(file, settings, done, kept.get("machine", {}))

    def has(self, run: Run) -> bool:
        """Whether the run is done."""
        return run in self._results

    def result(self, run: Run) -> Result:
        """Returns what a run gave that is done."""
        return self._results[run]

    def add(self, run: Run, result: Result) -> None:
        """Keeps what a run gave."""
        self._results[run] = result
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part = self._file.with_name(f"{self._file.name}.part")
            part.write_text(self._text())
            part.replace(self._file)

    def accuracies(self, algorithm: str, alpha: float) -> list[list[float]]:
        """Returns the accuracy after each round, for each seed that has it."""
        return [
            result.accuracy
            for run, result in sorted(self._results.items(), key=lambda item: item[0].seed)
            if (run.algorithm, run.alpha) == (algorithm, alpha) and not result.error
        ]

    def means(self) -> list[dict[str, object]]:
        """Returns a row for each algorithm and alpha: the last round's accuracy, over seeds."""
        rows = []
        for name, alpha in dict.fromkeys((run.algorithm, run.alpha) for run in self._results):
            if last := [seed[-1] for seed in self.accuracies(name, alpha)]:
                row = {"algorithm": name, "alpha": alpha, "seeds": len(last)}
                spread = statistics.stdev(last) if len(last) > 1 else 0.0
                rows.append({**row, "accuracy": statistics.fmean(last), "spread": spread})
        return rows

    def table(self) -> str:
        """Returns the means as lines."""
        return "\n".join(
            f"{row['algorithm']:<9} alpha {row['alpha']:<5g} accuracy {row['accuracy']:.4f} "
            f"(standard deviation {row['spread']:.4f}, seeds: {row['seeds']})"
            for row in self.means()
        )

    def _text(self) -> str:
        runs = [{**asdict(run), **asdict(result)} for run, result in self._results.items()]
        content = {
            "settings": asdict(self._settings),
            "means": self.means(),
            "runs": runs,
            "machine": self._machine,
        }
        return json.dumps(content, indent=2) + "\n"


def draw(record: Record, runs: Sequence[Run], folder: Path) -> Iterator[Path]:
    """Writes the two pictures: one algorithm at each alpha, and all at the smallest alpha."""
    first, smallest = runs[0].algorithm, min(run.alpha for run in runs)
    by_alpha = dict.fromkeys(run.alpha for run in runs if run.algorithm == first)
    at_smallest = dict.fromkeys(run.algorithm for run in runs if run.alpha == smallest)
    pictures = {
        f"{first}-by-alpha.png": (
            f"{first} on more and more different sites",
            {f"alpha {alpha:g}": record.accuracies(first, alpha) for alpha in by_alpha},
        ),
        f"algorithms-at-alpha-{smallest:g}.png": (
            f"the algorithms at alpha {smallest:g}",
            {name: record.accuracies(name, smallest) for name in at_smallest},
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, (title, lines) in pictures.items():
        drawn = {line: seeds for line, seeds in lines.items() if seeds}
        (folder / name).write_bytes(accuracy_png(drawn, title=title))
        yield folder / name
