"""What a picture of metrics by round is drawn from: curves of the sites, and of the mean."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """One metric by round.

    Args:
        metric: Its name. Metrics whose names end in the same word belong together: `train_loss`
            and `val_loss`.
        points: Rounds that the model has been trained for -> value; nan leaves a gap.
        site: Whose it is; None for the mean over the sites.
    """

    metric: str
    points: Mapping[int, float]
    site: str | None = None

    @property
    def word(self) -> str:
        """What it shares with the metrics that it belongs to.

        >>> Curve("val_loss", {}).word, Curve("loss (evaluate)", {}).word
        ('loss', 'loss')
        """
        return self.metric.split(" ")[0].rpartition("_")[2]
