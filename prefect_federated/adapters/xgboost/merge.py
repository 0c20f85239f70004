"""Sites' new trees become one more boosting round of an ordinary booster.

Only new trees are read; those of earlier rounds stay bytes, so a round costs the server what it
brings, however many came before. XGBoost itself is not needed for it.

Source: Roth et al. 2022, "NVIDIA FLARE: Federated Learning from Simulation to Real-World", Figure 5
(tree-based bagging). We weight each site's trees by its share of the rows that answered the round,
so that a round moves the model as far as one pooled step would, whichever sites are away.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from prefect_federated.adapters.xgboost.trees import checked, scaled
from prefect_federated.adapters.xgboost.ubjson import Value, listed, read, write
from prefect_federated.errors import ProtocolError, UpdateRejected
from prefect_federated.messages import Tensor, Tensors, Update

BOOSTER = "booster"
"""The tensor that holds a booster as UBJSON; empty before the first round."""
TREES = "trees"
"""The blob with a site's new trees: UBJSON of a booster that holds no others."""
ROUNDS = "rounds"
"""The tensor that names each round by its trees, by which a site knows which it has seen."""

Document = dict[str, Any]


@dataclass(frozen=True)
class Grown:
    """The new trees of one site.

    Args:
        site: Whose they are, for errors.
        booster: UBJSON of a booster that holds them and no others.
        weight: The rows that they were grown on.
    """

    site: str
    booster: bytes
    weight: float

    @classmethod
    def of(cls, update: Update) -> "Grown":
        """Returns what a site has sent in a round of bagging.

        Raises:
            UpdateRejected: there are no trees in it.
        """
        if TREES not in update.blobs:
            raise UpdateRejected(
                f"site {update.site!r} sent no trees. Its executor must send them as the blob "
                f"{TREES!r}, as prefect_federated.adapters.xgboost.bagging does."
            )
        return cls(update.site, update.blobs[TREES], update.weight)


class Forest:
    """A booster, open to be appended to.

    Args:
        model: The tensors of `tensors()`; without a first round, those of `empty()`.

    Raises:
        ProtocolError: they do not hold a booster of trees.
    """

    def __init__(self, model: Tensors) -> None:
        raw = model[BOOSTER].tobytes()
        self._head: Document | None = None
        self._trees: list[bytes] = []
        self._classes: list[int] = []
        self._ends: list[int] = [0]
        self._names: list[int] = [int(name) for name in model[ROUNDS]]
        if raw:
            document = _document(raw)
            inside = _model(document)
            self._trees = [write(tree) for tree in inside["trees"]]
            self._classes = list(inside["tree_info"])
            self._ends = list(inside["iteration_indptr"])
            self._head = document

    @property
    def rounds(self) -> int:
        """Boosting rounds in it."""
        return len(self._ends) - 1

    def append(self, grown: Sequence[Grown], features: int) -> None:
        """Appends the sites' trees as one round, each scaled by its site's share of the rows.

        Args:
            grown: In any order; sorted by site, so that the model is the same in each run.
            features: Columns that the trees may split.

        Raises:
            UpdateRejected: a site's trees are damaged, or belong to another model; the message
                names the site and what differs.
        """
        total = sum(each.weight for each in grown)
        fragments: list[bytes] = []
        classes: list[int] = []
        for each in sorted(grown, key=lambda each: each.site):
            document = self._read(each)
            inside = _model(document)
            trees, info = inside["trees"], inside["tree_info"]
            if len(trees) != len(info) or not trees:
                raise UpdateRejected(f"site {each.site!r} sent no trees, or not a class for each.")
            for place, tree in enumerate(trees):
                whole = checked(tree, features, each.site)
                number = len(self._trees) + len(fragments)
                fragments.append(write({**scaled(whole, each.weight / total), "id": number}))
                classes.append(int(info[place]))
        self._trees += fragments
        self._classes += classes
        self._ends.append(len(self._trees))
        self._names.append(name_of(b"".join(fragments)))

    def tensors(self) -> dict[str, Tensor]:
        """Returns the booster as UBJSON, and the rounds' names, `(rounds,)` uint64."""
        if self._head is None:
            return empty()
        head = _without_trees(self._head)
        inside = _model(head)
        inside["gbtree_model_param"]["num_trees"] = str(len(self._trees))
        inside["iteration_indptr"] = self._ends
        inside["tree_info"] = self._classes
        inside["trees"] = []
        # the trees are spliced in where their empty list stands, instead of being written anew
        before, mark, after = write(head).partition(_KEY + listed([]))
        assert mark
        raw = b"".join([before, _KEY, listed(self._trees), after])
        return {
            BOOSTER: np.frombuffer(raw, np.uint8), ROUNDS: np.array(self._names, np.uint64)
        }  # fmt: skip

    def _read(self, grown: Grown) -> Document:
        try:
            document = _document(grown.booster)
        except ProtocolError as error:
            raise UpdateRejected(f"site {grown.site!r} sent no booster: {error}") from error
        if self._head is None:
            self._head = _without_trees(document)
        difference = _difference(_without_trees(document), _without_trees(self._head))
        if difference is not None:
            raise UpdateRejected(
                f"site {grown.site!r} sent trees of another model than the other sites': "
                f"{difference}. Give all sites the same XGBoost and the same parameters."
            )
        return document


_KEY = write({"trees": None})[1:-2]


def empty() -> dict[str, Tensor]:
    """Returns the model before its first round."""
    return {BOOSTER: np.zeros(0, np.uint8), ROUNDS: np.zeros(0, np.uint64)}


def check(model: Tensors, features: int, site: str) -> Tensors:
    """Returns a model that came whole from a site, if all of its trees can be trusted.

    Args:
        model: A booster, and the names of its rounds.
        features: Columns that its trees may split.
        site: Who sent it.

    Raises:
        UpdateRejected: a tree is damaged, or its rounds have not as many names.
    """
    rounds = check_booster(model[BOOSTER], features, site)
    if rounds != len(model[ROUNDS]):
        raise UpdateRejected(
            f"site {site!r} sent a model of {rounds} rounds that names {len(model[ROUNDS])} of "
            "them. Have it run the same version of prefect-federated as the others."
        )
    return model


def check_booster(raw: Tensor, features: int, site: str) -> int:
    """Returns how many rounds a booster has that came whole from a site.

    Args:
        raw: Its UBJSON, uint8.
        features: Columns that its trees may split.
        site: Who sent it.

    Raises:
        UpdateRejected: it is none, or one of its trees is damaged.
    """
    try:
        inside = _model(_document(np.asarray(raw, np.uint8).tobytes()))
        for tree in inside["trees"]:
            checked(tree, features, site)
        return len(inside["iteration_indptr"]) - 1
    except (ProtocolError, KeyError, TypeError) as error:
        raise UpdateRejected(
            f"site {site!r} sent a model that is no booster of trees: {error} Have it run the "
            "executor that the job names, with the same version of xgboost as the others."
        ) from error


def name_of(trees: bytes) -> int:
    """Returns what a round with these trees is named."""
    return int.from_bytes(hashlib.blake2b(trees, digest_size=8).digest())


def seen_before(names: NDArray[np.uint64], seen: Sequence[int]) -> int:
    """Returns how many rounds of a model a site has seen: all that it has, or none."""
    now = [int(name) for name in names]
    return len(seen) if now[: len(seen)] == list(seen) else 0


def _document(raw: bytes) -> Document:
    document = read(raw)
    try:
        inside = _model(cast(Document, document))
        is_whole = all(isinstance(inside[k], list) for k in ("trees", "tree_info"))
    except (KeyError, TypeError) as error:
        raise ProtocolError("it is not a booster of trees.") from error
    if not is_whole:
        raise ProtocolError("it is not a booster of trees.")
    return cast(Document, document)


def _model(document: Document) -> Document:
    return cast(Document, document["learner"]["gradient_booster"]["model"])


def _without_trees(document: Document) -> Document:
    """Returns a copy of what all rounds of a model have in common."""
    learner = document["learner"]
    booster = learner["gradient_booster"]
    model = {
        **booster["model"], "trees": [], "tree_info": [], "iteration_indptr": [],
        "gbtree_model_param": {**booster["model"]["gbtree_model_param"], "num_trees": "0"},
    }  # fmt: skip
    return {
        **document,
        "learner": {
            **learner, "attributes": {}, "gradient_booster": {**booster, "model": model}
        },
    }  # fmt: skip


def _difference(one: Value, other: Value, where: str = "") -> str | None:
    """Returns in words where two documents first differ; None where they do not."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted(one.keys() | other.keys()):
            found = _difference(one.get(key), other.get(key), f"{where}.{key}".lstrip("."))
            if found is not None:
                return found
        return None
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return None if np.array_equal(one, other) else f"{where} differs"  # type: ignore[arg-type]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = enumerate(zip(one, other, strict=True))
        found_in = (_difference(a, b, f"{where}[{n}]") for n, (a, b) in parts)
        return next(filter(None, found_in), None)
    if one == other:
        return None
    return f"{where} is {_short(one)}, and {_short(other)} at the others"


def _short(value: Value) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 80 else f"{text[:77]}..."
