"""Choosing sites: by name, by label, at random."""

from collections import Counter
from collections.abc import Sequence

import pytest

from prefect_federated.errors import ConfigurationError
from prefect_federated.tasks.choosing import Draw, Sites, among, labelled, sample, shuffled

SITES = [f"site-{n}" for n in range(1, 11)]


def region(site: str) -> dict[str, str]:
    return {"region": "eu" if int(site[-1]) % 2 else "us"}


def names(rule: Sites, sites: Sequence[str] = SITES, round: int = 0, seed: int = 0) -> list[str]:
    return list(among(rule, Draw(sites, round, seed, labels=region)))


def test_none_chooses_all_and_names_choose_those_that_are_there() -> None:
    assert len(names(None)) == 10
    assert names(["site-9", "site-2", "gone"]) == ["site-2", "site-9"]


def test_rules_are_put_together_by_of() -> None:
    assert names(labelled(region="us", of=["site-1", "site-2"])) == ["site-2"]
    european = names(sample(2, of=labelled(region="eu")))
    assert len(european) == 2
    assert all(int(name[-1]) % 2 for name in european)
    assert names(labelled(region="eu", scanner="7T")) == []


def test_a_share_is_rounded_up_and_a_count_above_all_is_all() -> None:
    assert len(names(sample(0.25))) == 3
    assert len(names(sample(0.3))) == 3  # 3 and not 3.0000000000000004
    assert len(names(sample(99))) == 10
    assert len(names(sample(1.0))) == 10
    assert names(sample(1), []) == []


def test_the_same_seed_and_round_draw_the_same_sites_in_any_order_and_with_one_gone() -> None:
    drawn = names(sample(4, seed=7), SITES, round=3)
    assert names(sample(4), SITES, round=3, seed=7) == drawn
    assert set(names(sample(4, seed=7), SITES[::-1], round=3)) == set(drawn)
    without_one = [site for site in SITES if site != drawn[0]]
    assert set(drawn[1:]) <= set(names(sample(4, seed=7), without_one, round=3))
    others = {tuple(names(sample(4, seed=7), round=n)) for n in range(1, 20)}
    assert len(others) > 10


def test_a_uniform_sample_draws_each_site_as_often() -> None:
    counts = Counter(name for n in range(1, 2001) for name in names(sample(3), round=n))
    # 600 of 2,000 for each; the standard deviation is sqrt(2000 * 0.3 * 0.7) = 20.5
    assert all(abs(count - 600) < 5 * 20.5 for count in counts.values())
    assert len(counts) == 10


def test_a_weighted_sample_of_one_draws_by_the_size_of_the_data() -> None:
    said = {"said": {"examples": "300"}, "nonsense": {"examples": "many"}}
    sent = {"said": 1.0, "sent": 100.0}
    rule = sample(1, weighted_by="examples")  # the others count as the mean of these two, 200
    counts = Counter(
        rule(
            Draw(
                ["said", "sent", "silent", "nonsense"],
                round=number,
                labels=lambda site: said.get(site, {}),
                weight=sent.get,
            )
        )[0]
        for number in range(4000)
    )
    for name, share in {"said": 3 / 8, "sent": 1 / 8, "silent": 1 / 4, "nonsense": 1 / 4}.items():
        assert abs(counts[name] / 4000 - share) < 0.04, (name, counts)


def test_a_weighted_sample_is_without_replacement() -> None:
    sizes = {"huge": 1e12, "a": 1.0, "b": 1.0}
    drawn = sample(2, weighted_by="examples")(Draw(list(sizes), weight=sizes.get))
    assert len(drawn) == 2
    assert "huge" in drawn


@pytest.mark.parametrize("size", [0, -1, 0.0, 1.5, True])
def test_a_sample_of_no_possible_size_is_refused(size: float) -> None:
    with pytest.raises(ConfigurationError, match="give a count of at least 1"):
        sample(size)


def test_an_order_is_shuffled_anew_in_each_round_and_the_same_after_a_restart() -> None:
    assert sorted(shuffled(SITES, 1, seed=0)) == sorted(SITES)
    assert shuffled(SITES, 1, seed=0) == shuffled(SITES[::-1], 1, seed=0)
    assert shuffled(SITES, 1, seed=0) != shuffled(SITES, 2, seed=0)
