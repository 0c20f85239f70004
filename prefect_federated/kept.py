"""Tensors that a site keeps from round to round, in its own folder of the job; nothing is sent.

    site.state / kept / NAME / ROUND.safetensors

A round's file is there whole or not at all, whenever the process is killed. Rounds are told apart,
since a round may be done twice (the controller came back from an older snapshot) or its update may
never count: then the next one starts from an earlier round's tensors, which must still be there.
"""

from pathlib import Path

from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import Tensor, Tensors
from prefect_federated.model_file import map_model, write_model

_SUFFIX = ".safetensors"


class Kept:
    """What a site keeps under one name, by round.

    Args:
        folder: The site's folder of the job, `site.state`.
        name: What is kept, such as "control" or "personal"; the name of a folder.

    >>> import numpy, tempfile
    >>> kept = Kept(Path(tempfile.mkdtemp()), "personal")
    >>> kept.write(1, {"w": numpy.zeros(2)})
    >>> kept.newest_before(2), list(kept.read(1))
    (1, ['w'])
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder / "kept" / name

    def write(self, round: int, tensors: Tensors, after: int | None = None) -> None:
        """Keeps a round's tensors, and drops what no round can start from any more.

        What stays is this round's, the round's that they were made from, and the newest before
        that: a controller that comes back is at most one round behind what it had sent.

        Args:
            round: The round that made them; its own earlier tensors are replaced.
            tensors: What to keep.
            after: The round whose kept tensors these were made from; None if from none.

        Raises:
            ProtocolError: a dtype that no file holds.
            OSError: the disk is full, or the folder is not to be written to.
        """
        write_model(self._file(round), tensors)
        needed = {round, after, None if after is None else self.newest_before(after)}
        for other in self._rounds() - needed:
            self._file(other).unlink(missing_ok=True)

    def read(self, round: int) -> dict[str, Tensor]:
        """Returns the tensors of one round, read-only, as their file's mapped memory.

        Raises:
            ConfigurationError: there is no file of that round.
            SnapshotCorrupt: the file is damaged.
        """
        file = self._file(round)
        if not file.exists():
            have = ", ".join(map(str, sorted(self._rounds()))) or "none"
            raise ConfigurationError(
                f"{self._folder} has nothing of round {round} (it has: {have}), from which the "
                "site has to go on. Its folder of the job was emptied or is another one: put it "
                "back, or leave the site out of this job."
            )
        return map_model(file)

    def newest_before(self, round: int) -> int | None:
        """Returns the last round before `round` of which there are tensors; None if there is none.

        A round outside of rounds, 0, comes before all others, and after none.
        """
        return max((kept for kept in self._rounds() if kept < round), default=None)

    def _rounds(self) -> set[int]:
        stems = (file.name.removesuffix(_SUFFIX) for file in self._folder.glob(f"*{_SUFFIX}"))
        return {int(stem) for stem in stems if stem.isdecimal()}

    def _file(self, round: int) -> Path:
        return self._folder / f"{round}{_SUFFIX}"
