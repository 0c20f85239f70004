"""Trees as XGBoost's files hold them: checked before they are trusted, and scaled.

XGBoost follows a tree's indices without a look at them: a damaged tree would end the process.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_federated.errors import UpdateRejected

_NODES = {
    "base_weights": np.float32,
    "default_left": np.uint8,
    "left_children": np.int32,
    "loss_changes": np.float32,
    "parents": np.int32,
    "right_children": np.int32,
    "split_conditions": np.float32,
    "split_indices": np.int32,
    "split_type": np.uint8,
    "sum_hessian": np.float32,
}
_CATEGORIES = {
    "categories": np.int32,
    "categories_nodes": np.int32,
    "categories_segments": np.int64,
    "categories_sizes": np.int64,
}
_MOST_CATEGORIES = 1 << 20
_ROOT = 2**31 - 1
"""Stands for the parent of the root."""

Tree = dict[str, Any]


def checked(tree: object, features: int, site: str) -> Tree:
    """Returns a tree with what belongs to it only, if its parts fit together.

    Args:
        tree: As it was read.
        features: Columns that it may split.
        site: Who sent it.

    Raises:
        UpdateRejected: they do not fit; the message names the site.
    """
    try:
        found = {key: _array(tree, key, dtype) for key, dtype in (_NODES | _CATEGORIES).items()}
        wrong = _wrong(found, features)
    except (KeyError, TypeError, ValueError):
        wrong = "its arrays are not those of a tree"
    if wrong is not None:
        raise UpdateRejected(
            f"site {site!r} sent a tree that cannot be one: {wrong}. It is left out of the model."
        )
    parameters = {
        "num_deleted": "0",
        "num_feature": str(features),
        "num_nodes": str(len(found["left_children"])),
        "size_leaf_vector": "1",
    }
    return {**found, "id": 0, "tree_param": parameters}


def scaled(tree: Tree, factor: float) -> Tree:
    """Returns a tree whose leaves are multiplied by `factor`."""
    leaves = tree["left_children"] == -1
    by = np.where(leaves, np.float32(factor), np.float32(1))
    return {**tree, **{key: tree[key] * by for key in ("split_conditions", "base_weights")}}


def _array(tree: object, key: str, dtype: type) -> NDArray[Any]:
    if not isinstance(tree, Mapping):
        raise TypeError("no tree")
    array = np.asarray(tree[key])
    if array.size and (array.dtype != dtype or array.ndim != 1):
        raise TypeError("another type")
    return array.astype(dtype)


def _wrong(tree: Tree, features: int) -> str | None:
    """Returns what is wrong with a tree, in words; None if nothing is."""
    nodes = len(tree["left_children"])
    if nodes == 0 or any(len(tree[key]) != nodes for key in _NODES):
        return "its arrays have different lengths"
    left, right, place = tree["left_children"], tree["right_children"], np.arange(nodes)
    is_leaf = left == -1
    if not np.array_equal(is_leaf, right == -1):
        return "a node has one child"
    inner = place[~is_leaf]
    children = np.concatenate([left[inner], right[inner]])
    if not np.array_equal(np.sort(children), np.arange(1, nodes)):  # each has one parent
        return "its nodes are not one tree"
    parents = np.full(nodes, _ROOT, np.int64)
    parents[left[inner]] = parents[right[inner]] = inner
    if (parents[1:] >= place[1:]).any():
        return "its nodes are not in order"
    if not np.array_equal(parents, tree["parents"]):
        return "its parents are not those of its children"
    columns = tree["split_indices"][inner]
    if ((columns < 0) | (columns >= features)).any():
        return f"it splits a column beyond the {features} that there are"
    numbers = ("base_weights", "loss_changes", "split_conditions", "sum_hessian")
    if not all(np.isfinite(tree[key]).all() for key in numbers):
        return "it holds numbers that are not finite"
    return _wrong_categories(tree, nodes)


def _wrong_categories(tree: Tree, nodes: int) -> str | None:
    names, of = tree["categories"], tree["categories_nodes"]
    starts, sizes = tree["categories_segments"], tree["categories_sizes"]
    if not len(of) == len(starts) == len(sizes):
        return "its categories have different lengths"
    if not np.array_equal(np.flatnonzero(tree["split_type"]), of) or (of >= nodes).any():
        return "its categories belong to no node"
    if (tree["split_type"] > 1).any() or (tree["left_children"][of] == -1).any():
        return "its categories belong to no split"
    ends = np.cumsum(sizes)
    if (sizes < 0).any() or not np.array_equal(ends - sizes, starts):
        return "its categories are not in order"
    if len(names) != (ends[-1] if len(ends) else 0):
        return "its categories are not as many as it says"
    if ((names < 0) | (names >= _MOST_CATEGORIES)).any():
        return "it holds a category's number that is none"
    return None
