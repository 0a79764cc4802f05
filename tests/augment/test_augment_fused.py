"""Fused chains against kornia's own code, and the path of a GPU against that of a CPU."""

import pytest
import torch
from augment_chains import (
    BLUR,
    CROP,
    ERASE,
    FLIP,
    GRAY,
    JITTER,
    STRONG,
    TURN,
    Hole,
    Middle,
    Shift,
    Spread,
    Tint,
    chain,
    draws,
    path_of,
    pictures,
)

POOL = [
    *(FLIP, "RandomVerticalFlip", JITTER, GRAY, BLUR, ERASE, "RandomInvert", "RandomChannelShuffle"),
    *({"type": "RandomGamma", "gamma": [0.7, 1.5]}, {"type": "RandomBrightness", "brightness": [0.7, 1.3]}),
    *({"type": "RandomContrast", "contrast": [0.7, 1.3]}, {"type": "RandomSaturation", "saturation": [0.5, 1.5]}),
    *({"type": "RandomHue", "hue": [-0.2, 0.2]}, "RandomEqualize"),
]
USERS = [path_of(cls) for cls in (Shift, Tint, Middle, Spread, Hole)]


@pytest.fixture(scope="module", params=range(12))
def random_chain(request):
    """(recipe, draws, kornia's result): one geometric operation, then any others in any order."""
    generator = torch.Generator().manual_seed(request.param)
    picked = [POOL[n] for n in torch.randperm(len(POOL), generator=generator)[:5]]
    geometry = [CROP, {"type": "RandomCrop", "size": [24, 24], "padding": 3}, {"type": "CenterCrop", "size": [24, 24]}]
    # Equalizing turns a difference in the last bit into one of a whole level.
    recipe = [geometry[request.param % 3], *(op for op in picked if op != "RandomEqualize")]
    source = draws(epoch=request.param)
    with torch.no_grad():
        return recipe, source, chain(*recipe, engine="kornia")(pictures(), source)


@pytest.mark.parametrize("compile", [True, False])
def test_random_chains_equal_kornia(random_chain, compile):
    recipe, source, reference = random_chain
    with torch.no_grad():
        torch.testing.assert_close(chain(*recipe, compile=compile)(pictures(), source), reference, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def strong_at_224():
    """(recipe, images, kornia's result) of the strong chain at 224 pixels."""
    recipe = [CROP, FLIP, JITTER, GRAY, {**BLUR, "kernel_size": [23, 23]}, ERASE]
    images = pictures(4, 256, 256)
    with torch.no_grad():
        return recipe, images, chain(*recipe, size=(224, 224), engine="kornia")(images, draws(4))


@pytest.mark.parametrize("compile", [True, False])
def test_the_strong_chain_at_224(strong_at_224, compile):
    recipe, images, reference = strong_at_224
    fused = chain(*recipe, size=(224, 224), compile=compile)
    with torch.no_grad():
        torch.testing.assert_close(fused(images, draws(4)), reference, rtol=0, atol=1e-4)


def test_a_flip_that_goes_ahead_changes_nothing():
    """Its draws do not depend on its place, and color does not on where pixels lie."""
    recipe = [CROP, JITTER, BLUR, FLIP]
    fused, plain = (chain(*recipe, engine=engine)(pictures(), draws()) for engine in ("fused", "kornia"))
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-5)


def test_a_gpus_path_gives_the_cpus_results():
    """Drawn samples are selected instead of gathered, and all images are computed at once."""
    for recipe in (STRONG, [TURN, *STRONG], USERS):
        for size in ((24, 24), (100, 100)):
            first = chain(*recipe, size=size, compile=False)
            actual = first(pictures(), draws())
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.compiler, "is_compiling", lambda: True)
                torch.testing.assert_close(first(pictures(), draws()), actual, rtol=0, atol=2e-6)
