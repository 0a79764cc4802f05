"""Mixup and cutmix: one draw a batch, every view, and the shares that the views really got."""

import pytest
import torch
from pydantic import ValidationError
from scipy.stats import kstest

from augment.dual import AugmentSettings, DualAugment
from augment.mix import _cutmix, _Plan, mixed
from augment.policy import MixSettings
from augment.views import InputSpec, Views

IDS = torch.arange(100, 106)
MIXUP, CUTMIX = MixSettings(mixup=0.8), MixSettings(cutmix=1.0)


def views(*sizes: int, batch: int = 6) -> Views:
    """Image b is the number b everywhere, so that a pixel tells where it comes from."""
    number = torch.arange(float(batch))[:, None, None, None]
    student, *teacher = (number.expand(batch, 3, size, size + 3).clone() for size in sizes)
    return Views(((tuple(teacher)),) if teacher else (), (student,))


def test_mixup_by_hand() -> None:
    result = mixed(views(4, 8), MIXUP, seed=0, epoch=0, ids=IDS)
    [share], [[same]] = result.mix.student, result.mix.teacher
    assert share == same and 0 < share < 1
    for b, partner in enumerate(result.mix.partner.tolist()):
        for view in (result.student[0], result.teacher[0][0]):
            torch.testing.assert_close(view[b], torch.full_like(view[b], share * b + (1 - share) * partner))


def test_cutmix_has_one_box_and_counts_its_pixels() -> None:
    for epoch in range(20):
        result = mixed(views(10, 37), CUTMIX, seed=0, epoch=epoch, ids=IDS)
        for view, share in (
            (result.student[0], result.mix.student[0]),
            (result.teacher[0][0], result.mix.teacher[0][0]),
        ):
            for b, partner in enumerate(result.mix.partner.tolist()):
                reference = view[b] == partner
                assert (reference | (view[b] == b)).all() and reference.float().mean().item() == pytest.approx(
                    1 - share
                )
                rows, columns = reference[0].any(1).nonzero(), reference[0].any(0).nonzero()
                assert reference[0].sum() == len(rows) * len(columns), "what was cut in is a box"


@pytest.mark.parametrize(
    ("lam", "center", "rows", "columns"),
    [
        (0.75, (0.5, 0.5), (2, 6), (2, 6)),
        (0.75, (0.0, 0.99), (0, 2), (5, 8)),
        (1.0, (0.5, 0.5), (4, 4), (4, 4)),
        (0.0, (0.5, 0.5), (0, 8), (0, 8)),
    ],
)
def test_the_box_by_hand(lam: float, center: tuple[float, float], rows: tuple, columns: tuple) -> None:
    """Of 8 pixels, an area of a quarter is 4 a side; what lies beyond the border is lost."""
    view = torch.arange(2.0)[:, None, None, None].expand(2, 3, 8, 8)
    result, share = _cutmix(view, torch.tensor([1, 0]), _Plan(lam, center))
    expected = torch.zeros(8, 8)
    expected[slice(*rows), slice(*columns)] = 1
    torch.testing.assert_close(result[0, 0], expected)
    assert share == pytest.approx(1 - expected.mean().item())


def test_partners_belong_to_the_set_of_samples() -> None:
    first = mixed(views(4), MIXUP, seed=0, epoch=0, ids=IDS)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    again = mixed(views(4), MIXUP, seed=0, epoch=0, ids=IDS[order])
    assert first.mix.student == again.mix.student
    partner_of = dict(zip(IDS.tolist(), IDS[first.mix.partner].tolist()))
    assert dict(zip(IDS[order].tolist(), IDS[order][again.mix.partner].tolist())) == partner_of
    assert all(own != other for own, other in partner_of.items())
    assert sorted(partner_of.values()) == IDS.tolist()


def test_every_epoch_and_seed_mixes_anew() -> None:
    draws = [mixed(views(4), MIXUP, seed, epoch, IDS).mix for seed in range(3) for epoch in range(3)]
    assert len({mix.student for mix in draws}) == 9
    assert len({tuple(mix.partner.tolist()) for mix in draws}) > 5
    assert mixed(views(4), MIXUP, 1, 2, IDS).mix.student == draws[5].student


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_follow_their_beta(alpha: float) -> None:
    fractions = [mixed(views(1), MixSettings(mixup=alpha), 0, epoch, IDS).mix.student[0] for epoch in range(500)]
    assert kstest(fractions, "beta", args=(alpha, alpha)).pvalue > 0.001


def test_p_and_switch_are_shares_of_batches() -> None:
    settings = MixSettings(mixup=1.0, cutmix=1.0, p=0.6, switch_p=0.25)
    results = [mixed(views(8), settings, 0, epoch, IDS) for epoch in range(1000)]
    happened = [result for result in results if result.mix is not None]
    assert 0.55 < len(happened) / 1000 < 0.65
    whole = [bool((result.student[0] % 1 == 0).all()) for result in happened]  # cutmix makes no numbers in between
    assert 0.2 < sum(whole) / len(whole) < 0.3


def test_one_image_is_left_alone() -> None:
    assert mixed(views(4, batch=1), MIXUP, 0, 0, IDS[:1]).mix is None


def test_dual_augment_mixes_what_both_networks_see() -> None:
    specs = InputSpec((16, 16)), InputSpec((24, 24), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    plain = DualAugment(AugmentSettings(policy="identical"), specs[1:], specs[0], seed=0)(images, IDS, 3)
    both = DualAugment(AugmentSettings(policy="identical", mix=MIXUP), specs[1:], specs[0], seed=0)(images, IDS, 3)
    [share] = both.mix.student
    for before, after in ((plain.student[0], both.student[0]), (plain.teacher[0][0], both.teacher[0][0])):
        torch.testing.assert_close(after, share * before + (1 - share) * before[both.mix.partner])


def test_identical_views_are_mixed_once() -> None:
    spec = InputSpec((16, 16))
    dual = DualAugment(AugmentSettings(policy="identical", mix=CUTMIX), (spec,), spec, seed=0)
    result = dual(torch.zeros(6, 3, 16, 16, dtype=torch.uint8), IDS, 0)
    assert result.student[0] is result.teacher[0][0]


def test_mixing_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="neither mixup nor cutmix is on"):
        MixSettings()
