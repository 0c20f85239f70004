import io

import numpy as np
import pytest
from PIL import Image

from prefect_federated.adapters.split_picture import split_png
from prefect_federated.partitioners import dirichlet

LABELS = np.random.default_rng(0).integers(0, 10, 4000)
TEN = [(0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E), (0x2C, 0xA0, 0x2C), (0xD6, 0x27, 0x28)]


def colours_of(png: bytes) -> dict[tuple[int, int, int], int]:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return {colour: count for count, colour in image.getcolors(maxcolors=1 << 24) or []}  # type: ignore[misc]


def test_each_label_has_its_colour_and_as_much_of_it_as_it_has_rows() -> None:
    labels = np.repeat([0, 1, 2, 3], [10, 20, 30, 40])
    found = colours_of(split_png(labels, [np.arange(100)]))
    areas = [found[colour] for colour in TEN]
    assert np.array(areas) / sum(areas) == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.03)


@pytest.mark.parametrize("sites", [1, 8, 100])
def test_many_sites_make_a_picture_of_bounded_width(sites: int) -> None:
    parts = dirichlet(LABELS, sites, alpha=10.0)
    png = split_png(LABELS, parts, title="alpha = 10")
    width, height = Image.open(io.BytesIO(png)).size
    assert 500 <= width <= 1500
    assert 300 <= height <= 500
    assert len(png) < 100_000
    assert len(colours_of(png).keys() & set(TEN)) == 4


def test_many_labels_text_labels_and_nothing_at_all_can_be_drawn() -> None:
    labels = np.arange(300) % 100
    assert split_png(labels, [np.arange(150), np.arange(150, 300)])
    assert split_png(["cat", "dog", "cat"], [[0], [1, 2], []], names=["bern", "basel", "zug"])
    assert split_png([], [])


def test_names_must_be_as_many_as_sites() -> None:
    with pytest.raises(ValueError, match="1 names for 2 sites"):
        split_png([1, 2], [[0], [1]], names=["bern"])
