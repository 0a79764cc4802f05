"""RandAugment and its relatives: single steps against torchvision, what is drawn, and the whole against a slow loop."""

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import AutoAugmentPolicy, InterpolationMode

from augment.draws import Draws
from augment.magnitude_ops import STEPS, MagnitudeOperation, magnitudes
from augment.ops import aug_mix, auto_augment, rand_augment, trivial_augment
from augment.ops.aug_mix import AugMix
from augment.ops.auto_augment import AutoAugment, sub_policies
from augment.ops.rand_augment import RandAugment
from augment.ops.three_augment import ThreeAugment
from augment.ops.trivial_augment import TrivialAugmentWide

LEVEL = 1 / 255


def photo(height=40, width=36):
    """Smooth, with every level."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves = [0.5 + 0.45 * torch.sin(3 * x + k) * torch.cos(2 * y - k) for k in range(3)]
    return torch.stack(waves).mul(255).round().to(torch.uint8)


PHOTO = photo()
ROUGH = (PHOTO.int() + torch.randint(-12, 13, PHOTO.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255)
ROUGH = ROUGH.to(torch.uint8)


def apply_step(step, magnitude, image=PHOTO, interpolation="nearest", fill=0.0):
    params = {"step": torch.tensor([[STEPS.index(step)]]), "magnitude": torch.tensor([[float(magnitude)]])}
    return MagnitudeOperation(interpolation, fill).apply(image[None].float().mul(LEVEL), params)[0]


def apply_torchvision_step(step, magnitude, image=PHOTO, interpolation=InterpolationMode.NEAREST, fill=None):
    tool = v2.RandAugment()
    done = tool._apply_image_or_video_transform(image, step, magnitude, interpolation, {torch.Tensor: fill})
    return done.float().mul(LEVEL)


# torchvision weights pixels at the border of a fill twice when it interpolates; without a fill (black) it does not.
@pytest.mark.parametrize("interpolation, fill", [("nearest", 0.5), ("nearest", 0.0), ("bilinear", 0.0)])
@pytest.mark.parametrize(
    "step, magnitude",
    [
        ("ShearX", 0.23),
        ("ShearX", -0.99),
        ("ShearY", 0.3),
        ("TranslateX", 7.9),
        ("TranslateX", -5.2),
        ("TranslateY", 11.0),
        ("Rotate", 17.0),
        ("Rotate", -133.0),
        ("Rotate", 30.0),
    ],
)
def test_geometric_steps_are_torchvisions(step, magnitude, interpolation, fill):
    actual = apply_step(step, magnitude, interpolation=interpolation, fill=fill)
    expected = apply_torchvision_step(
        step, magnitude, interpolation=InterpolationMode(interpolation), fill=fill * 255 or None
    )
    # A pixel whose source lies half way between two may fall either way.
    assert ((actual - expected).abs() > 1.01 * LEVEL).float().mean() < 0.003


@pytest.mark.parametrize(
    "step, magnitude, tolerance",  # in levels: torchvision rounds luma and results down
    [
        ("Brightness", 0.6, 1),
        ("Brightness", -0.9, 1),
        ("Color", 0.9, 2),
        ("Color", -0.5, 2),
        ("Contrast", 0.7, 2),
        ("Contrast", -0.99, 2),
        ("Sharpness", 0.9, 2),
        ("Sharpness", -0.9, 2),
        ("Posterize", 4, 0),
        ("Posterize", 1, 0),
        ("Posterize", 8, 0),
        ("Solarize", 0.4, 0),
        ("Solarize", 0.8, 0),
        ("Solarize", 1.0, 0),
        ("AutoContrast", 0, 1),
        ("Equalize", 0, 0),
        ("Invert", 0, 0),
        ("Identity", 0, 0),
    ],
)
def test_color_steps_are_torchvisions(step, magnitude, tolerance):
    expected = apply_torchvision_step(step, magnitude, ROUGH)
    assert (apply_step(step, magnitude, ROUGH) - expected).abs().max() <= tolerance * LEVEL + 1e-6
    if step != "Identity" and (step, magnitude) not in {("Posterize", 8), ("Solarize", 1.0)}:
        assert (expected - ROUGH * LEVEL).abs().max() > 3 * LEVEL  # the comparison has something to compare


SPACES = {
    "rand": (rand_augment.SPACE, v2.RandAugment._AUGMENTATION_SPACE, 31),
    "trivial": (trivial_augment.SPACE, v2.TrivialAugmentWide._AUGMENTATION_SPACE, 31),
    "auto": (auto_augment.SPACE, v2.AutoAugment._AUGMENTATION_SPACE, 10),
    "mix": (aug_mix.SPACE + aug_mix.MORE, v2.AugMix._AUGMENTATION_SPACE, 10),
}


@pytest.mark.parametrize("name", SPACES)
def test_ranges_are_torchvisions(name):
    space, reference, bins = SPACES[name]
    assert {span.step for span in space} == set(reference)
    shape = torch.Size((1, 3, 200, 120))
    for n, span in enumerate(space):
        make, signed = reference[span.step]
        expected = make(bins, 200, 120)
        assert signed == span.signed
        if expected is None:
            continue
        choice, negative = torch.full((1, bins), n), torch.zeros(1, bins, dtype=torch.bool)
        actual = magnitudes(space, choice, torch.arange(bins)[None] / (bins - 1), negative, shape)["magnitude"][0]
        if span.step == "Posterize":
            actual = actual.round()
        torch.testing.assert_close(actual, expected.float(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn"])
def test_policies_are_torchvisions(policy):
    reference = v2.AutoAugment(AutoAugmentPolicy(policy))._policies
    assert [[(name, p, m or 0) for name, p, m in pair] for pair in reference] == sub_policies(policy)


@pytest.mark.parametrize("op", [RandAugment(3, 20, 4.0), TrivialAugmentWide(), AutoAugment("svhn"), AugMix()])
def test_a_batch_is_its_samples_one_by_one(op):
    """Against the slow way: every sample alone, its steps one after another."""
    ids = torch.arange(24)
    images = PHOTO[None].expand(24, -1, -1, -1).float().mul(LEVEL)
    params = op.sample(Draws(0, 0, "student", ids).op("op"), images.shape)
    together = op.apply(images, params)

    def chain(image, steps, sizes):
        for step, size in zip(steps.tolist(), sizes.tolist()):
            image = apply_step(STEPS[step], size, image * 255, op.interpolation)
        return image

    for n in range(24):
        step, magnitude = params["step"][n], params["magnitude"][n]
        if isinstance(op, AugMix):
            weight, *weights = params["weight"][n]
            chains = zip(step.view(3, -1), magnitude.view(3, -1), weights)
            alone = weight * images[n] + sum(w * chain(images[n], steps, sizes) for steps, sizes, w in chains)
        else:
            alone = chain(images[n], step, magnitude)
        # Multiplying by 255 and back may move a value over the edge of a level.
        assert ((together[n] - alone).abs() > 1e-4).float().mean() < 0.01
    assert (together - images).abs().mean() > 5 * LEVEL


def sampled(op, count=6000, shape=(3, 32, 32)):
    return op.sample(Draws(0, 0, "student", torch.arange(count)).op("op"), torch.Size((count, *shape)))


def test_randaugment_draws_every_step_alike_with_both_signs():
    params = sampled(RandAugment(num_ops=2, magnitude=15))
    share = torch.bincount(params["step"].flatten(), minlength=len(STEPS)) / 12000
    assert share[STEPS.index("Invert")] == 0 and (share[:14] - 1 / 14).abs().max() < 0.01
    rotated = params["magnitude"][params["step"] == STEPS.index("Rotate")]
    assert rotated.abs().unique().tolist() == [15.0] and 0.45 < (rotated > 0).float().mean() < 0.55
    first, second = params["step"].unbind(1)
    assert (first == second).float().mean() < 0.1  # steps are independent
    noisy = sampled(RandAugment(magnitude=15, mstd=3.0))
    spread = noisy["magnitude"][noisy["step"] == STEPS.index("Rotate")].abs()
    assert abs(spread.mean() - 15) < 0.5 and 2.6 < spread.std() < 3.4


def test_trivialaugment_draws_every_level_alike():
    params = sampled(TrivialAugmentWide())
    rotated = params["magnitude"][params["step"] == STEPS.index("Rotate")].abs()
    assert params["step"].shape == (6000, 1) and len(rotated.unique()) == 31
    assert abs(rotated.mean() - 67.5) < 6


def test_autoaugment_does_a_step_with_its_own_probability():
    params = sampled(AutoAugment("cifar10"), 20000)
    pairs = sub_policies("cifar10")
    expected = sum(p for pair in pairs for name, p, _ in pair if name == "Invert") / 25
    actual = (params["step"] == STEPS.index("Invert")).any(1).float().mean()
    assert abs(actual - expected) < 0.004
    rotation = params["magnitude"][params["step"] == STEPS.index("Rotate")].abs().unique()
    torch.testing.assert_close(rotation, torch.tensor([30 * 2 / 9]))


@pytest.mark.parametrize("alpha, variance", [(1, 1 / 12), (3, 1 / 28)])
def test_augmix_weights_are_beta_and_dirichlet(alpha, variance):
    weight = sampled(AugMix(alpha=alpha))["weight"]
    torch.testing.assert_close(weight.sum(1), torch.ones(6000))
    assert abs(weight[:, 0].mean() - 0.5) < 0.02 and abs(weight[:, 0].var() / variance - 1) < 0.1
    share = weight[:, 1] / weight[:, 1:].sum(1)
    expected = (1 / 3) * (2 / 3) / (3 * alpha + 1)
    assert abs(share.mean() - 1 / 3) < 0.02 and abs(share.var() / expected - 1) < 0.12


def test_augmix_chains_have_one_to_three_steps():
    step = sampled(AugMix())["step"].view(-1, 3, 3) != STEPS.index("Identity")
    assert torch.equal(step, step.sort(2, descending=True).values)
    share = torch.bincount(step.sum(2).flatten(), minlength=4) / 18000
    assert share[0] == 0 and (share[1:] - 1 / 3).abs().max() < 0.02
    assert sampled(AugMix(depth=2))["step"].shape == (6000, 6)


def test_three_augment_is_one_of_three():
    op = ThreeAugment()
    params = sampled(op)
    assert (torch.bincount(params["which"], minlength=3) / 6000 - 1 / 3).abs().max() < 0.02
    image = PHOTO[None].float().mul(LEVEL).expand(3, -1, -1, -1)
    gray, sun, blur = op.apply(image, {"which": torch.arange(3), "sigma": torch.full((3,), 1.5)})
    reference = v2.functional.rgb_to_grayscale(PHOTO, 3) * LEVEL
    assert (gray - reference).abs().max() < 1.1 * LEVEL
    torch.testing.assert_close(sun, v2.functional.solarize(PHOTO, 128) * LEVEL)
    torch.testing.assert_close(blur, v2.functional.gaussian_blur(image[2], [11, 11], [1.5, 1.5]), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: RandAugment(magnitude=31), "magnitude is in 0 … 30, not 31"),
        (lambda: RandAugment(num_ops=0), "num_ops is a number of steps from 1"),
        (lambda: RandAugment(mstd=-1), "mstd is a standard deviation from 0"),
        (lambda: RandAugment(interpolation="cubic"), "interpolation is one of nearest, bilinear, not 'cubic'"),
        (lambda: TrivialAugmentWide(fill=128), "fill is a value in 0 … 1, not 128"),
        (lambda: AutoAugment("mnist"), "policy is one of imagenet, cifar10, svhn, not 'mnist'"),
        (lambda: AugMix(severity=11), "severity is in 1 … 10, not 11"),
        (lambda: AugMix(alpha=0.5), "alpha is a whole number from 1, not 0.5"),
        (lambda: AugMix(width=0), "width is a number of chains from 1"),
        (lambda: AugMix(depth=-1), "depth is a number of steps, or 0"),
        (lambda: ThreeAugment(sigma=(2.0, 0.1)), "sigma is a number or .lowest, highest."),
        (lambda: ThreeAugment(threshold=128), "threshold is a value in 0 … 1, not 128"),
    ],
)
def test_a_mistake_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()
