"""Each site's own model, kept on the server for the evaluation at all sites.

What a site sends is written to Prefect's result storage as it passes, one update at a time, and
read again when it is needed. The files stay in the job's folder: each holds what one site alone has
learnt, so keep them from those who may not see that.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from prefect_federated.errors import (
    FederatedError,
    SnapshotCorrupt,
    SnapshotFailed,
    StaleController,
)
from prefect_federated.messages import Reply, Tensor, Tensors, Update
from prefect_federated.tasks.federation import Federation
from prefect_federated.tasks.storage import (
    StoredModel,
    delete,
    delete_others,
    exclusive,
    get,
    get_stored,
    put,
    put_model,
)


class SiteModel(StoredModel):
    """Where a site's model is.

    Args:
        round: The round in which it counted.
    """

    round: int


class _Index(BaseModel):
    """The small file that names the models: the attempt that wrote it, and site -> model."""

    epoch: int = 0
    models: dict[str, SiteModel] = {}


class SiteModels:
    """The newest model of each site whose updates counted, found again after a restart.

    A site that fails in a round, or is not asked, keeps its last one. In a round that does not
    count, because the quorum was not there, all do.

    Args:
        fed: The running federation.

    Raises:
        SnapshotCorrupt: the list of an earlier attempt's models cannot be read.
        SnapshotFailed: the storage is not to be written to.
        StaleController: a newer attempt of the job keeps models already.
    """

    def __init__(self, fed: Federation) -> None:
        self._job, self._epoch = fed.hub.job, fed.hub.epoch
        self._numbers = itertools.count()
        self._models = self._replaced({})
        kept = {model.path for model in self._models.values()}
        delete_others(self._folder, "*.safetensors", kept)  # of a round that was not finished
        delete_others(self._folder, "*.part", kept=set())

    @property
    def sites(self) -> dict[str, SiteModel]:
        """Returns site -> where its model is, by name."""
        return dict(sorted(self._models.items()))

    def keeping(
        self,
        replies: Iterable[Reply],
        round: int,
        tensors_of: Callable[[Update], Tensors] = lambda update: update.tensors,
    ) -> Iterator[Reply]:
        """Yields the replies, each as it comes, when the model in it has been written.

        Args:
            replies: The replies to a call that trains.
            round: The round, counted from 1.
            tensors_of: Returns the model in an update, where that holds more, or other things.

        Raises:
            SnapshotFailed: a model could not be written.
            StaleController: a newer attempt of the job keeps models already.
        """
        new: dict[str, SiteModel] = {}
        is_complete = False
        try:
            for reply in replies:
                if isinstance(reply, Update) and (tensors := tensors_of(reply)):
                    _delete([new[reply.site]] if reply.site in new else [])  # a late one, too
                    new[reply.site] = self._written(reply.site, round, tensors)
                    del tensors  # while the next one is waited for
                yield reply
                del reply
            is_complete = True
        finally:
            if not is_complete:
                _delete(new.values())
        before = self._models
        self._models = self._replaced(new)
        _delete(before[site] for site in new if site in before)

    def read(self, site: str) -> dict[str, Tensor]:
        """Returns a site's model; with local storage, its file's mapped memory.

        Raises:
            KeyError: there is none.
            SnapshotCorrupt: it is not what was written.
        """
        return get_stored(self._models[site])

    def _written(self, site: str, round: int, tensors: Tensors) -> SiteModel:
        number = next(self._numbers)  # no file is ever written into the place of one that counts
        name = f"{quote(site, safe='')}-{round:05d}-{self._epoch}-{number}.safetensors"
        with _writing(f"the model of site {site!r} in round {round}"):
            stored = put_model(f"{self._folder}/{name}", tensors)
        return SiteModel(round=round, **stored.model_dump())

    def _replaced(self, new: dict[str, SiteModel]) -> dict[str, SiteModel]:
        """Writes the list of models with these in it, and returns it."""
        with _writing("the list of the sites' models"), exclusive(f"{self._job}/site-models.lock"):
            earlier = self._read()
            models = {**earlier.models, **new}
            index = _Index(epoch=self._epoch, models=models)
            put(self._file, index.model_dump_json().encode())
        return models

    def _read(self) -> _Index:
        content = get(self._file)
        try:
            index = _Index() if content is None else _Index.model_validate_json(content)
        except ValidationError as error:
            raise SnapshotCorrupt(
                f"{self._file} does not name the sites' models. Delete it to go on without those "
                "of earlier rounds."
            ) from error
        if index.epoch > self._epoch:
            raise StaleController(
                f"attempt {index.epoch} of job {self._job} keeps the sites' models; attempt "
                f"{self._epoch} stops."
            )
        return index

    @property
    def _folder(self) -> str:
        return f"{self._job}/site-models"

    @property
    def _file(self) -> str:
        return f"{self._job}/site-models.json"


def _delete(models: Iterable[SiteModel]) -> None:
    for model in models:
        delete(model.path)


@contextmanager
def _writing(what: str) -> Iterator[None]:
    """Turns what a storage raises, which may be anything, into an error of ours."""
    try:
        yield
    except FederatedError:
        raise
    except Exception as error:
        raise SnapshotFailed(
            f"{what} could not be written: {type(error).__name__}: {error}. Make room in Prefect's "
            "result storage, or mend what keeps it from being written to."
        ) from error
