"""Rows matched by hashed keys: the common ones, in one order, and nothing told on the way."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from prefect_federated.errors import ConfigurationError, SitesDisagree, UpdateRejected
from prefect_federated.messages import Tensors
from prefect_federated.tabular.matching import HASH_BYTES, HashedIds, HashedMeeting, Rows

SITES = ["a", "b", "c"]
Keys = Mapping[str, Sequence[str]]


def met(keys: Mapping[str, Keys]) -> tuple[dict[str, Mapping[str, Rows]], list[Tensors]]:
    """Returns each site's common rows, and all that the server has been told."""
    sites = {site: HashedIds(site, list(keys), own) for site, own in keys.items()}
    heard: Tensors = {}
    all_told = []
    for step in range(HashedIds.steps):
        told = {site: matcher.say(step, heard) for site, matcher in sites.items()}
        all_told += list(told.values())
        heard = HashedMeeting().hear(step, told)
    return {site: matcher.rows(heard) for site, matcher in sites.items()}, all_told


def test_all_sites_find_the_common_rows_in_the_same_order() -> None:
    random = np.random.default_rng(0)
    names = np.array([f"person {number}" for number in range(200)])
    keys: dict[str, dict[str, list[str]]] = {
        site: {"train": [*random.permutation(names)[:150]], "test": ["t1", f"t-{site}", "", ""]}
        for site in SITES
    }
    found, told = met(keys)
    common = set.intersection(*(set(own["train"]) for own in keys.values()))
    lists = [[keys[site]["train"][row] for row in found[site]["train"]] for site in SITES]
    assert set(lists[0]) == common
    assert len(lists[0]) == len(common) > 50
    assert lists[0] == lists[1] == lists[2]
    assert lists[0] != sorted(lists[0])  # the order tells nothing of a site's
    assert [keys[site]["test"][row] for site in SITES for row in found[site]["test"]] == ["t1"] * 3
    whole = b"".join(array.tobytes() for said in told for array in said.values())
    assert b"person" not in whole


def test_the_salt_is_new_each_time_and_never_in_what_the_server_sees() -> None:
    keys: dict[str, Keys] = {site: {"train": ["one", "two"]} for site in SITES}
    (_, first), (_, second) = met(keys), met(keys)
    assert first[-1]["train"].size == 2 * HASH_BYTES
    assert not np.array_equal(first[-1]["train"], second[-1]["train"])
    sealed = [name for said in first for name in said if name.startswith("sealed/")]
    assert sealed == ["sealed/b", "sealed/c"]


def test_a_salt_that_was_changed_on_the_way_does_not_open() -> None:
    a, b = (HashedIds(site, ["a", "b"], {"train": ["one"]}) for site in "ab")
    publics = {**a.say(0, {}), **b.say(0, {})}
    b.say(1, publics)
    sealed = a.say(1, publics)["sealed/b"].copy()
    sealed[-1] ^= 1
    with pytest.raises(UpdateRejected, match="site 'b' cannot open the salt that site 'a'"):
        b.say(2, {"sealed/b": sealed})


def test_a_key_twice_names_the_site_and_how_many_but_no_key() -> None:
    keys = {"train": ["one", "two", "two", "three", "three", "three", "", ""]}
    with pytest.raises(ConfigurationError) as caught:
        HashedIds("b", SITES, keys)
    assert "site 'b' has 2 keys that stand in more than one row of its train part (5 rows" in str(
        caught.value
    )
    assert "three" not in str(caught.value)


def test_no_common_row_says_how_many_keys_each_site_has() -> None:
    keys: dict[str, Keys] = {site: {"train": [site, f"{site}2"]} for site in SITES}
    with pytest.raises(SitesDisagree, match="a has 2 keys, b has 2 keys, c has 2 keys"):
        met(keys)
