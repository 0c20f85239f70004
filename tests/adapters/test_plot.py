import io
import math
import struct

import pytest
from PIL import Image

from prefect_federated.adapters.plot import curves_png


def size_of(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_metrics_that_end_in_the_same_word_share_a_panel() -> None:
    rounds = list(range(1, 21))
    falling = [1 / number for number in rounds]
    one = curves_png(rounds, {"loss": falling})
    shared = curves_png(rounds, {"loss": falling, "train_loss": falling})
    two = curves_png(rounds, {"loss": falling, "accuracy": falling})

    assert size_of(one) == size_of(shared)
    assert size_of(two)[0] == 2 * size_of(one)[0]


def test_the_picture_is_small_and_shows_every_series_in_its_colour() -> None:
    rounds = list(range(1, 101))
    png = curves_png(
        rounds,
        {"loss": [1 / n for n in rounds], "train_loss": [2 / n for n in rounds]},
        title="heart",
    )
    assert len(png) < 100_000
    image = Image.open(io.BytesIO(png)).convert("RGB")
    colours = {colour for _, colour in image.getcolors(maxcolors=1 << 24) or []}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours


def test_no_rounds_one_round_and_gaps_can_be_drawn() -> None:
    for rounds, values in ([], []), ([1], [0.5]), ([1, 2], [math.nan, 0.5]):
        assert size_of(curves_png(rounds, {"loss": values}))[0] > 0
    assert size_of(curves_png([], {}))[0] > 0


def test_a_series_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="'loss' has 1 values for 2 rounds"):
        curves_png([1, 2], {"loss": [0.1]})
