"""Rows by the value of a categorical column: a tally of all of them, and one a group."""

from typing import TYPE_CHECKING

import numpy as np

from prefect_federated.statistics.tally import Plan, Tally

if TYPE_CHECKING:
    import pandas as pd

MOST_GROUPS = 50
"""Groups at most; a column with more different values makes none."""

_OF_TRUTH = {0.0: "false", 1.0: "true"}


class GroupedTally:
    """Counts rows as they go by, all together and by group.

    Rows without a value in the grouping column are in no group.

    Args:
        plan: What to count of all rows; the frames have the grouping column, too.
        of_groups: What to count of each group.
        group_by: The column, categorical or boolean; no groups if None.
    """

    def __init__(self, plan: Plan, of_groups: Plan, group_by: str | None) -> None:
        self.whole = Tally(plan)
        self.groups: dict[str, Tally] = {}
        self.is_too_many = False
        self._of_groups = of_groups
        self._group_by = group_by

    def add(self, frame: "pd.DataFrame") -> None:
        """Counts some rows."""
        self.whole.add(frame)
        if self._group_by is None or self.is_too_many:
            return
        column = frame[self._group_by]
        if column.dtype.kind == "f":  # truth values
            column = column.map(_OF_TRUTH).astype("category")
        codes = column.cat.codes.to_numpy()
        for code in np.unique(codes[codes >= 0]).tolist():
            group = str(column.cat.categories[code])
            if group not in self.groups:
                if len(self.groups) >= MOST_GROUPS:
                    self.groups, self.is_too_many = {}, True
                    return
                self.groups[group] = Tally(self._of_groups)
            self.groups[group].add(frame[codes == code])
