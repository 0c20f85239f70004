import io
import math

import pytest
from PIL import Image

from prefect_federated.adapters.plot import COLOURS, curves_png
from prefect_federated.curves import Curve


def falling(rounds: int, factor: float = 1.0) -> dict[int, float]:
    return {number: factor / number for number in range(1, rounds + 1)}


def image(*curves: Curve) -> Image.Image:
    return Image.open(io.BytesIO(curves_png(curves))).convert("RGB")


def colours(*curves: Curve) -> set[tuple[int, ...]]:
    found = image(*curves).getcolors(maxcolors=1 << 24) or []
    return {colour for _, colour in found if isinstance(colour, tuple)}


def black_in(picture: Image.Image) -> int:
    """Returns how many pixels are black."""
    counts = picture.getcolors(maxcolors=1 << 24) or []
    return sum(count for count, colour in counts if colour == (0, 0, 0))


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def test_metrics_that_end_in_the_same_word_share_a_panel() -> None:
    one = image(Curve("loss", falling(20)))
    shared = image(*(Curve(name, falling(20)) for name in ("val_loss", "train_loss")))
    two = image(*(Curve(name, falling(20)) for name in ("loss", "accuracy")))
    assert one.size == shared.size
    assert two.width == 2 * one.width


def test_the_picture_is_small_and_shows_each_mean_in_its_colour() -> None:
    curves = [Curve("loss", falling(100)), Curve("train_loss", falling(100, 2))]
    assert len(curves_png(curves, title="heart")) < 100_000
    assert {rgb(COLOURS[0]), rgb(COLOURS[1])} <= colours(*curves)


def test_each_site_has_a_line_and_the_mean_a_bold_black_one() -> None:
    mean = Curve("loss", falling(10))
    sites = [Curve("loss", falling(10, n / 4), f"site-{n}") for n in range(1, 6)]
    assert {rgb(colour) for colour in COLOURS[:5]} <= colours(mean, *sites)  # in the legend
    assert black_in(image(mean, *sites)) > black_in(image(*sites)) + 300


@pytest.mark.parametrize("name", ["site-{}", "a-hospital-with-a-very-long-name-in-the-north-{}"])
def test_the_names_of_sixteen_sites_stand_below_the_panels(name: str) -> None:
    sites = [Curve("loss", falling(10, n), name.format(n)) for n in range(1, 17)]
    few, many = image(*sites[:2]), image(*sites)
    assert many.width == few.width
    assert many.height >= few.height + 3 * 22  # rows of names, and no smaller panel


def test_no_rounds_one_round_and_gaps_can_be_drawn() -> None:
    for points in ({}, {1: 0.5}, {1: math.nan, 2: 0.5}, {0: math.inf, 1: 1.0}):
        assert image(Curve("loss", points), Curve("loss", points, "a")).width > 0
    assert curves_png([]).startswith(b"\x89PNG")


def test_very_many_rounds_and_metrics_still_make_a_picture() -> None:
    rounds = {number: math.sin(number / 500) for number in range(20_000)}
    assert len(curves_png([Curve("loss", rounds, site) for site in "abcd"])) < 200_000
    forty = image(*(Curve(f"metric{number}", falling(3)) for number in range(40)))
    assert forty.height <= 4 * 320
