"""Images of other than three channels: their canvas, and what a source may return."""

import numpy as np
import pytest
from toy_source import toy

from distill.data.base import DataError
from distill.data.canvas import PADDING, Canvas
from distill.data.experiment_data import DataSettings, ExperimentData


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_each_channel_is_resized_by_itself(fit: str, channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, channels), dtype=np.uint8)
    canvas = Canvas.of_training(16, fit, image.shape[2])(image)
    assert canvas.shape == (16, 16, channels) and canvas.dtype == np.uint8
    for channel in range(channels):
        alone = Canvas((16, 16), fit)(np.repeat(image[:, :, channel : channel + 1], 3, 2))
        rows = slice(2, 14) if fit == "pad" else slice(None)
        assert np.array_equal(canvas[rows, :, channel], alone[rows, :, 0])
        if fit == "pad":
            assert (canvas[:2, :, channel] == PADDING[channel % 3]).all()


@pytest.mark.parametrize("on_device", [False, True])
def test_batches_have_the_channels(on_device: bool) -> None:
    settings = DataSettings(source="digits", size=8, batch_size=4, workers=0, channels=1, on_device=on_device)
    data = ExperimentData(settings)
    gray = next(iter(data.train_loader())).images
    color = next(iter(ExperimentData(settings.model_copy(update={"channels": 3})).train_loader())).images
    assert gray.shape == (4, 1, 8, 8) and (color == gray).all()


def test_another_number_of_channels_is_an_error() -> None:
    data = toy(channels=4)
    with pytest.raises(DataError, match=r"returned uint8 \[8, 8, 3\], expected uint8 \[H, W, 4\] \(data\.channels\)"):
        next(iter(data.train_loader()))
