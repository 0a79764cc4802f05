"""A source that shows another one through fixed operations."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from augment.chain import Chain
from augment.draws import Draws, sample_key
from distill.data.augmented import KEY, Augmented
from distill.data.experiment_data import DataSettings, ExperimentData

NOISE = [{"type": "RandomInvert", "p": 1.0}, {"type": "GaussianNoise", "std": [0.1, 0.2], "p": 1.0}]


def data(**own) -> ExperimentData:
    source = {"type": "augmented", "source": {"type": "digits"}, "operations": NOISE, "size": 16, **own}
    return ExperimentData(DataSettings(source=source, batch_size=8, size=16, workers=0))


def test_splits_labels_and_ids_are_those_of_the_other_source():
    made, plain = data(), ExperimentData(DataSettings(source={"type": "digits"}, workers=0))
    for split in ("train", "val", "test"):
        assert made.subset(split).ids == plain.subset(split).ids
        assert np.array_equal(made.subset(split).labels, plain.subset(split).labels)
    assert made.classes == plain.classes and made.fingerprint() != plain.fingerprint()


def test_images_are_those_of_the_chain_and_always_the_same():
    first, again = data().subset("train")[3], data().subset("train")[3]
    assert first.image.shape == (16, 16, 3) and np.array_equal(first.image, again.image)
    plain = ExperimentData(DataSettings(source={"type": "digits"}, workers=0)).subset("train")[3]
    image = torch.from_numpy(plain.image.transpose(2, 0, 1).copy())[None]
    settings = Augmented.Settings(source={"type": "digits"}, operations=NOISE)
    draws = Draws(0, 0, KEY, torch.tensor([sample_key(plain.id)]))
    expected = Chain(settings.operations, (16, 16), compile=False)(image, draws)[0]
    torch.testing.assert_close(torch.from_numpy(first.image).permute(2, 0, 1) / 255, expected, atol=0.003, rtol=0)
    assert not np.array_equal(first.image, data(draw_seed=1).subset("train")[3].image), "another domain"


def test_operations_can_be_those_of_some_splits():
    made, plain = data(splits=["test"]), ExperimentData(DataSettings(source={"type": "digits"}, workers=0))
    assert np.array_equal(made.subset("train")[3].image, plain.subset("train")[3].image)
    assert np.array_equal(made.subset("test")[3].image, data().subset("test")[3].image)
    assert made.fingerprint() != data().fingerprint()
    with pytest.raises(ValidationError, match="splits"):
        data(splits=[])


def test_an_unknown_operation_is_refused():
    with pytest.raises(ValidationError, match="RandomInvertt"):
        data(operations=["RandomInvertt"])
