"""The ramp: a share of the samples that grows by epochs is augmented, the others are only resized."""

import pytest
import torch

from augment.chain import eval_view
from augment.dual import DualAugment
from augment.policy import AugmentSettings, RampSettings
from augment.views import InputSpec

SPEC, SMALL = InputSpec((24, 24)), InputSpec((16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
CHAIN = [{"type": "RandomResizedCrop", "scale": [0.2, 0.5]}, {"type": "ColorJitter", "brightness": 0.5}]
IDS = torch.arange(64)
IMAGES = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def dual(ramp: dict | None, policy: str = "independent", teachers=(SMALL,), **more) -> DualAugment:
    return DualAugment(AugmentSettings(policy=policy, student=CHAIN, ramp=ramp, **more), teachers, SPEC, seed=3)


def plain(view: torch.Tensor, spec: InputSpec) -> torch.Tensor:
    """[B] bool: which samples are only resized."""
    return (view - eval_view(IMAGES, spec)).abs().flatten(1).amax(1) < 1e-4


def test_share_by_hand() -> None:
    ramp = RampSettings(epochs=4, start=0.2)
    assert [round(ramp.share(epoch), 6) for epoch in (0, 1, 2, 4, 9)] == [0.2, 0.4, 0.6, 1, 1]
    with pytest.raises(ValueError):
        RampSettings(epochs=4, start=1.0)


@pytest.mark.parametrize("policy", ["independent", "shared_geometry", "both_to_both"])
def test_the_share_rises_and_a_sample_is_spared_in_all_its_views(policy: str) -> None:
    views = [dual({"epochs": 4}, policy)(IMAGES, IDS, epoch) for epoch in range(5)]
    spared = []
    for made in views:
        actual = [plain(view, SPEC) for view in made.student]
        actual += [plain(view, SMALL) for view in made.teacher[0]]
        assert all(torch.equal(built, actual[0]) for built in actual)
        spared.append(actual[0])
    counts = [int(built.sum()) for built in spared]
    assert counts[0] == 64 and counts[4] == 0
    assert 36 <= counts[1] <= 60 and 4 <= counts[3] <= 28, counts
    assert not torch.equal(spared[1] & spared[2], spared[2]), "drawn anew in every epoch"


def test_the_augmented_ones_are_what_they_are_without_a_ramp_and_neither_batch_nor_order_matters() -> None:
    ramped, free = (dual(ramp)(IMAGES, IDS, 2) for ramp in ({"epochs": 4}, None))
    spared = plain(ramped.student[0], SPEC)
    assert 0 < spared.sum() < 64
    assert torch.equal(ramped.student[0][~spared], free.student[0][~spared])
    rows = torch.tensor([40, 3, 17])
    some = dual({"epochs": 4})(IMAGES[rows], IDS[rows], 2)
    torch.testing.assert_close(some.student[0], ramped.student[0][rows])
    torch.testing.assert_close(some.teacher[0][0], ramped.teacher[0][0][rows])


def test_views_made_by_the_loader_are_ramped_too() -> None:
    maker = dual({"epochs": 4}, teachers=())
    views = maker(maker.render(IMAGES, IDS, 2), IDS, 2)
    torch.testing.assert_close(views.student[0], maker(IMAGES, IDS, 2).student[0], rtol=0, atol=0.02)


def test_a_ramp_keeps_its_part_of_a_training_of_another_length() -> None:
    settings = AugmentSettings(ramp={"epochs": 4})
    assert settings.alone(2.5).ramp == RampSettings(epochs=10)
    assert AugmentSettings().alone(2.5).ramp is None
