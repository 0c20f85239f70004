"""The picture of a matrix: a PNG of the size that its cells need, readable in each cell."""

import io

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.image import imread

from prefect_federated.adapters.matrix_picture import _readable, _text, matrix_png

SITES = [f"hospital-{number}" for number in range(1, 9)]


def size(png: bytes) -> tuple[int, int]:
    """Returns a picture's width and height in pixels."""
    height, width = imread(io.BytesIO(png), format="png").shape[:2]
    return width, height


def test_eight_sites_have_room_for_their_numbers() -> None:
    values = np.random.default_rng(0).uniform(size=(9, 8))
    values[3, 4] = np.nan
    own = [(place + 1, place) for place in range(8)]
    width, height = size(matrix_png("accuracy", ["global model", *SITES], SITES, values, own))
    assert width / 8 > 70  # pixels a column, of which a number of five digits needs 40
    assert height / 9 > 50
    assert width < 1200


def test_of_many_sites_sixteen_are_shown() -> None:
    def picture(sites: int) -> bytes:
        names = [f"s{number}" for number in range(sites)]
        return matrix_png("loss", ["global model", *names], names, np.ones((sites + 1, sites)))

    assert size(picture(40)) == size(picture(16))


@pytest.mark.parametrize("values", [np.full((1, 2), np.nan), np.ones((1, 2)), np.empty((0, 0))])
def test_a_matrix_of_nothing_or_of_one_value_has_a_picture(values: np.ndarray) -> None:
    models, sites = ["m"] * values.shape[0], ["s"] * values.shape[1]
    assert matrix_png("loss", models, sites, values).startswith(b"\x89PNG")


def test_values_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 models and 1 sites have no \(1, 2\) values"):
        matrix_png("loss", ["a", "b"], ["c"], np.ones((1, 2)))


def test_numbers_stand_out_from_each_colour_behind_them() -> None:
    def luminance(rgb: np.ndarray) -> float:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    for shade in colormaps["cividis"](np.linspace(0, 1, 256)):
        text = 0.0 if _readable(shade) == "black" else 1.0
        light, dark = sorted((text, luminance(shade[:3])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # what WCAG 2 asks of text


def test_numbers_are_short() -> None:
    assert [_text(v) for v in (0.98765, 1234.5, np.nan, 3e9)] == ["0.988", "1234", "none", "3e+09"]
