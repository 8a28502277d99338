"""Sample digits: nobody trained on them, and nobody shows digits so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from client_app.runtime import open_runtime
from hyperlora.config.schema import RunConfig
from hyperlora.data.digits import digits_held_out, digits_public
from hyperlora.data.federation import DataError
from hyperlora.data.personal import Shares, read_image_folder
from hyperlora.data.sample import STYLES, sample_images, write_sample


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_nobody_trained_on_a_digit_that_is_held_out() -> None:
    held, _ = digits_held_out(16)
    runtime = open_runtime(RunConfig.parse({"seed": 0}))
    trained = rows(digits_public()[0])
    for client_id in ("clean-0", "clean-1", "clean-2", "clean-3", "clean-4"):
        data = runtime.client(client_id)
        trained |= rows(data.train.inputs) | rows(data.validation.inputs)
    assert len(held) > 150
    assert not rows(held) & trained


@pytest.mark.parametrize("style", STYLES)
def test_a_sample_has_every_digit_and_can_be_read_as_a_folder(style: str, tmp_path: Path) -> None:
    write_sample(tmp_path / "mine", style)
    classes = [str(digit) for digit in range(10)]
    data = read_image_folder(tmp_path / "mine", "mine", classes, image_size=16, channels=1, shares=Shares(0.15, 0.25))
    assert data.train.labels.bincount(minlength=10).min() > 3
    assert len(data.train) + len(data.validation) + len(data.test) == len(sample_images(style))


def test_what_is_there_is_not_written_over_and_a_style_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leave out --sample to use it"):
        write_sample(tmp_path)
    with pytest.raises(DataError, match="no style of digits 'x': choose one of ink, "):
        write_sample(tmp_path / "mine", "x")
    assert not (tmp_path / "mine").exists()
