"""The fused engine: chains of operations against kornia's own code, composed geometry against an analytic warp."""

import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from augment.chain import Chain, ImageError, normalized, to_unit
from augment.draws import Draws, counters, uniforms
from augment.fuse.geometry import composed, coverage, inverse, warp
from augment.kornia_ops import FusedKorniaOp
from augment.operation import SampledOp
from augment.recipe import Op
from augment.views import InputSpec

CROP = {"type": "RandomResizedCrop", "scale": [0.3, 1.0]}
FLIP = "RandomHorizontalFlip"
JITTER = {"type": "ColorJitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8}
GRAY = {"type": "RandomGrayscale", "p": 0.2}
BLUR = {"type": "RandomGaussianBlur", "kernel_size": [5, 5], "sigma": [0.1, 2.0], "p": 0.5}
ERASE = {"type": "RandomErasing", "p": 0.25}
TURN = {"type": "RandomRotation", "degrees": 30}
STRONG = [CROP, FLIP, JITTER, GRAY, BLUR, ERASE]
SPEC = InputSpec((24, 24))


class Shift:
    """A user's declarative operation, without a base class."""

    def sample(self, draws, shape):
        return {"by": draws.integers(0, -3, 4).float(), "drawn": draws.bernoulli(1, 0.5)}

    def affine(self, params, shape):
        matrix = torch.eye(3).repeat(shape[0], 1, 1)
        matrix[:, 0, 2] = params["by"]
        return matrix


class Tint:
    def sample(self, draws, shape):
        return {"tint": draws.uniform(0, (3,))}

    def color(self, images, params):
        return images * params["tint"].view(-1, 3, 1, 1)


class Middle:
    """Subtracts the mean of the image."""

    def sample(self, draws, shape):
        return {"drawn": draws.bernoulli(0, 0.5)}

    def statistics(self, images, params):
        return {"mean": images.mean((2, 3))}

    def color(self, images, params):
        return images - params["mean"][..., None, None] + 0.5


class Spread:
    def sample(self, draws, shape):
        return {"drawn": draws.bernoulli(0, 0.5)}

    def kernel(self, params, shape):
        return torch.full((shape[0], 3), 1 / 3), torch.full((shape[0], 3), 1 / 3)


class Hole:
    def sample(self, draws, shape):
        return {"at": draws.integers(0, 0, 10), "drawn": draws.bernoulli(1, 0.5)}

    def erase(self, params, shape):
        at, side = params["at"], torch.full_like(params["at"], 4)
        return torch.stack([at, at, side, side], 1), torch.tensor([0.1, 0.2, 0.3]).expand(shape[0], 3)


class Loud(nn.Module):
    def forward(self, images):
        return images + torch.rand(len(images), 1, 1, 1)


def mine(cls):
    return f"{__name__}:{cls.__name__}"


def chain(*recipe, size=(24, 24), **settings):
    return Chain([Op.model_validate(op) for op in recipe], size, **settings)


def pictures(batch=8, height=32, width=36, channels=3):
    shape = (batch, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def draws(batch=8, epoch=0):
    return Draws(0, epoch, "student", torch.arange(100, 100 + batch))


# --- Against kornia ------------------------------------------------------------------------------------------------

POOL = [
    *(FLIP, "RandomVerticalFlip", JITTER, GRAY, BLUR, ERASE, "RandomInvert", "RandomChannelShuffle"),
    *({"type": "RandomGamma", "gamma": [0.7, 1.5]}, {"type": "RandomBrightness", "brightness": [0.7, 1.3]}),
    *({"type": "RandomContrast", "contrast": [0.7, 1.3]}, {"type": "RandomSaturation", "saturation": [0.5, 1.5]}),
    *({"type": "RandomHue", "hue": [-0.2, 0.2]}, "RandomEqualize"),
]


@pytest.mark.parametrize("compile", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_random_chains_equal_kornia(seed, compile):
    """One geometric operation, anything else in any order around it: the same pictures from both engines."""
    generator = torch.Generator().manual_seed(seed)
    picked = [POOL[n] for n in torch.randperm(len(POOL), generator=generator)[:5]]
    geometry = [CROP, {"type": "RandomCrop", "size": [24, 24], "padding": 3}, {"type": "CenterCrop", "size": [24, 24]}]
    recipe = [geometry[seed % 3], *picked]
    if "RandomEqualize" in recipe:  # it makes of the last bit a whole step
        recipe = [op for op in recipe if op != "RandomEqualize"]
    fused, plain = chain(*recipe, compile=compile), chain(*recipe, engine="kornia")
    with torch.no_grad():
        torch.testing.assert_close(
            fused(pictures(), draws(epoch=seed)), plain(pictures(), draws(epoch=seed)), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("compile", [True, False])
def test_the_strong_chain_at_224(compile):
    recipe = [CROP, FLIP, JITTER, GRAY, {**BLUR, "kernel_size": [23, 23]}, ERASE]
    fused, plain = (chain(*recipe, size=(224, 224), engine=engine, compile=compile) for engine in ("fused", "kornia"))
    images = pictures(4, 256, 256)
    with torch.no_grad():
        torch.testing.assert_close(fused(images, draws(4)), plain(images, draws(4)), rtol=0, atol=1e-4)


def test_a_gpus_way_is_the_cpus():
    """Selecting instead of gathering, all at once instead of one by one."""
    for recipe in (STRONG, [TURN, *STRONG], [mine(Shift), mine(Tint), mine(Middle), mine(Spread), mine(Hole)]):
        for size in ((24, 24), (100, 100)):
            first = chain(*recipe, size=size, compile=False)
            actual = first(pictures(), draws())
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.compiler, "is_compiling", lambda: True)
                torch.testing.assert_close(first(pictures(), draws()), actual, rtol=0, atol=2e-6)


# --- Composed geometry ---------------------------------------------------------------------------------------------


def wave(x, y):
    """A smooth image, known between its pixels."""
    return 0.5 + 0.25 * torch.sin(0.35 * x + 0.2) + 0.25 * torch.cos(0.3 * y - 0.1 * x)


@pytest.mark.parametrize(
    "recipe",
    [
        [CROP, FLIP],
        [TURN, CROP],
        [TURN, {"type": "RandomAffine", "degrees": 20, "scale": [0.8, 1.2], "shear": 10, "p": 1.0}, FLIP],
        [{"type": "RandomPerspective", "p": 1.0, "distortion_scale": 0.3}, TURN, "RandomVerticalFlip"],
        [{"type": "Resize", "size": [48, 48]}, TURN, {"type": "RandomCrop", "size": [32, 32]}],
    ],
)
def test_composing_is_more_exact_than_resampling_twice(recipe):
    """Against the image that the map of coordinates gives without any pixels in between, away from the border."""
    side = 40
    y, x = torch.meshgrid(torch.arange(side) * 1.0, torch.arange(side) * 1.0, indexing="ij")
    images = wave(x, y).expand(6, 1, side, side).contiguous()
    first = chain(*recipe, size=(side, side))
    shape, steps, stepwise = images.shape, [], images
    for step in first.steps:
        params = step.operation.sample(draws(6).op(step.key), shape)
        steps.append((step.user, params))
        stepwise = step.operation.run(stepwise, params)
        shape = stepwise.shape
    back, size, frames = composed(steps, images.shape)
    once = warp(images, back, size, frames)
    assert once.shape == stepwise.shape
    v, u = torch.meshgrid(torch.arange(size[0]) * 1.0, torch.arange(size[1]) * 1.0, indexing="ij")
    source = back.float() @ torch.stack([u, v, torch.ones_like(u)]).flatten(1)
    source_x, source_y = ((source[:, n] / source[:, 2]).view(6, *size) for n in (0, 1))
    inside = (source_x > 1) & (source_x < side - 2) & (source_y > 1) & (source_y < side - 2)
    for frame, limits in frames:
        at = frame.float() @ torch.stack([u, v, torch.ones_like(u)]).flatten(1)
        at_x, at_y = ((at[:, n] / at[:, 2]).view(6, *size) for n in (0, 1))
        inside &= (at_x > 1) & (at_x < limits[1] - 2) & (at_y > 1) & (at_y < limits[0] - 2)
    exact = wave(source_x, source_y)[inside]
    assert inside.float().mean() > 0.3
    composed_error = (once[:, 0][inside] - exact).abs().mean()
    stepwise_error = (stepwise[:, 0][inside] - exact).abs().mean()
    if len([op for op in recipe if op not in (FLIP, "RandomVerticalFlip")]) > 1:
        assert composed_error < 0.85 * stepwise_error
    assert composed_error < 0.004


def test_what_was_cut_off_stays_cut_off():
    """A crop and then a rotation: black corners, as from kornia, though the source has pixels there."""
    images = torch.ones(6, 3, 40, 40)
    recipe = [{"type": "CenterCrop", "size": [20, 20]}, {"type": "RandomRotation", "degrees": [45.0, 45.0], "p": 1.0}]
    fused, plain = (chain(*recipe, size=(20, 20), engine=engine)(images, draws(6)) for engine in ("fused", "kornia"))
    assert float(fused[:, :, 0, 0].max()) == 0
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-5)  # of a constant image, also the soft edge


def test_coverage_is_the_bilinear_reading_of_ones():
    x, y = torch.linspace(-2, 9, 23).view(1, 1, -1), torch.linspace(-2, 7, 19).view(1, -1, 1)
    grid = torch.stack(torch.broadcast_tensors((2 * x + 1) / 7 - 1, (2 * y + 1) / 5 - 1), -1)
    ones = torch.nn.functional.grid_sample(torch.ones(1, 1, 5, 7), grid, align_corners=False)
    torch.testing.assert_close(coverage(x, y, (5, 7)), ones, rtol=0, atol=1e-6)


def test_inverse():
    matrices = torch.randn(50, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(inverse(matrices), torch.linalg.inv(matrices))


# --- The plan ------------------------------------------------------------------------------------------------------


def test_the_plan_says_what_is_fused_and_what_is_not():
    first = chain(CROP, JITTER, GRAY, BLUR, FLIP, "RandomEqualize", TURN, mine(Loud), ERASE, "RandomInvert")
    reading = "one bilinear reading, axis by axis, zeros beyond the border"
    assert first.plan().splitlines() == [
        f"geometry RandomResizedCrop + RandomHorizontalFlip: {reading}",
        "color    ColorJitter + RandomGrayscale: pixel by pixel",
        "blur     RandomGaussianBlur: two filters along the axes",
        "barrier  RandomEqualize: kornia's own code",
        "geometry RandomRotation: one bilinear reading, zeros beyond the border",
        f"barrier  {mine(Loud)}: its own code",
        "color    RandomErasing + RandomInvert: pixel by pixel",
        "write    24 x 24, normalized",
        "on a CPU in C; by torch's operators RandomRotation",
    ]


@pytest.mark.parametrize(
    "recipe, passes",
    [
        ([FLIP, "RandomVerticalFlip"], ["geometry RandomHorizontalFlip + RandomVerticalFlip: whole pixels"]),
        ([ERASE, FLIP], ["color", "geometry"]),  # a box has a place, which a flip would change
        ([JITTER, TURN], ["color", "geometry"]),  # rotation brings in black
        ([TURN, JITTER, FLIP], ["geometry", "color"]),
        ([CROP, {"type": "RandomAffine", "degrees": 10, "padding_mode": "border"}], ["geometry", "geometry"]),
        ([FLIP, {"type": "RandomAffine", "degrees": 10, "padding_mode": "border"}], ["geometry"]),
        ([{"type": "RandomAffine", "degrees": 10, "padding_mode": "border"}, CROP], ["geometry"]),
    ],
)
def test_passes(recipe, passes):
    lines = chain(*recipe).plan().splitlines()[:-2]
    assert len(lines) == len(passes)
    assert all(line.startswith(start) for line, start in zip(lines, passes))


def test_a_flip_that_goes_ahead_changes_nothing():
    """Its draws do not depend on its place, and color does not on where pixels lie."""
    recipe = [CROP, JITTER, BLUR, FLIP]
    fused, plain = (chain(*recipe, engine=engine)(pictures(), draws()) for engine in ("fused", "kornia"))
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-5)


# --- Draws ---------------------------------------------------------------------------------------------------------


def test_all_draws_at_once_are_those_one_by_one():
    ids = torch.tensor([5, -3, 2**62])
    requests = [
        (Draws(0, 3, view, ids).op(op), count) for view in "ab" for op, count in (("x", 4), ("y", 1), ("z", 23))
    ]
    constants = counters([first for first, _ in requests], [count for _, count in requests], ids.device)
    together = uniforms(ids, constants).split([count for _, count in requests], 1)
    for (first, count), numbers in zip(requests, together):
        assert torch.equal(numbers, first.uniform(0, (count,)))


def test_an_operation_draws_the_same_alone_and_in_a_chain():
    first = chain(*STRONG)
    seen = {}
    for step in first.steps:
        original = step.user.from_uniforms
        step.user.from_uniforms = lambda u, shape, key=step.key, original=original: seen.setdefault(
            key, original(u, shape)
        )
    first(pictures(), draws())
    for step in first.steps:
        alone = step.operation.user.__class__(step.user.module).sample(draws().op(step.key), _shape_at(first, step))
        assert alone.keys() == seen[step.key].keys()
        assert all(torch.equal(alone[name], seen[step.key][name]) for name in alone)


def _shape_at(first, step):
    return torch.Size((8, 3, 32, 36)) if step.place == 0 else torch.Size((8, 3, 24, 24))


# --- Sizes, dtypes, bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width, channels", [(33, 27, 3), (40, 17, 3), (5, 7, 3), (64, 64, 3), (120, 90, 3)])
def test_any_size(height, width, channels):
    first = chain(CROP, FLIP, JITTER, GRAY, {**BLUR, "kernel_size": [3, 3]}, ERASE, TURN, size=(18, 26))
    images = pictures(5, height, width, channels)
    view = first(images, draws(5))
    assert view.shape == (5, 3, 18, 26) and float(view.min()) >= 0 and float(view.max()) <= 1
    torch.testing.assert_close(first(to_unit(images), draws(5)), view, rtol=0, atol=1e-6)
    for n in range(5):
        alone = Draws(0, 0, "student", torch.arange(100 + n, 101 + n))
        torch.testing.assert_close(first(images[n : n + 1], alone), view[n : n + 1], rtol=0, atol=2e-6)


def test_one_channel():
    first = chain(CROP, FLIP, {"type": "ColorJitter", "brightness": 0.4, "contrast": 0.4}, GRAY, BLUR, ERASE)
    plain = chain(*[Op.model_validate(op) for op in (CROP, FLIP, GRAY, BLUR, ERASE)], engine="kornia")
    assert first(pictures(channels=1), draws()).shape == (8, 1, 24, 24)
    assert plain(pictures(channels=1), draws()).shape == (8, 1, 24, 24)


def test_an_empty_batch():
    for recipe in (STRONG, [], [mine(Loud)]):
        assert chain(*recipe)(pictures(0), draws(0)).shape == (0, 3, 24, 24)
        assert chain(*recipe)(pictures(0), draws(0), spec=SPEC, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_the_last_write_normalizes_and_casts():
    for recipe in (STRONG, [CROP, mine(Loud)], []):
        first = chain(*recipe)
        pixels = first(pictures(), draws())
        torch.testing.assert_close(first(pictures(), draws(), spec=SPEC), normalized(pixels, SPEC), rtol=0, atol=1e-6)
        half = first(pictures(), draws(), spec=SPEC, dtype=torch.bfloat16)
        assert torch.equal(half, normalized(pixels, SPEC).bfloat16())


def test_the_input_is_left_alone():
    for images in (pictures(), to_unit(pictures())):
        before = images.clone()
        for recipe in ([JITTER, ERASE], [ERASE], STRONG, [mine(Middle), mine(Hole)]):
            chain(*recipe, size=(32, 36))(images, draws())
        assert torch.equal(images, before)


@pytest.mark.parametrize(
    "images, error, message",
    [
        (pictures(channels=1), ImageError, r"ColorJitter \(operation 2\) needs 3 channels, but every sample .* has 1"),
        (pictures()[0], ImageError, r"RandomResizedCrop, the first operation, needs images \[B, C, H, W\]"),
        (
            pictures().long(),
            TypeError,
            r"RandomResizedCrop, the first operation, needs uint8, or floats .* torch.int64",
        ),
        (
            torch.rand(8, 3, 32, 32) / torch.tensor([1.0, 1, 0, 1, 1, 0, 1, 1]).view(8, 1, 1, 1),
            ImageError,
            "sample 2, 5",
        ),
    ],
)
def test_bad_input_is_named(images, error, message):
    with pytest.raises(error, match=message):
        chain(CROP, JITTER)(images, draws())


class Broken:
    def __call__(self, images):
        return images / (images[:, :1, :1, :1] - images[:, :1, :1, :1])


def test_diagnose_names_the_operation():
    first = chain(CROP, mine(Broken), JITTER)
    with pytest.raises(ImageError, match=r"the results of .*Broken \(operation 2\) are not finite in sample 0, 1, 2"):
        first.diagnose(pictures(), draws())
    chain(*STRONG).diagnose(pictures(), draws())


# --- Compiled, and without a wait ----------------------------------------------------------------------------------


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique_dim", "equal"}


def test_on_a_gpu_the_host_waits_for_nothing():
    """Nothing that would bring a number to the host or make a shape of data, on the way that a GPU takes."""
    first = chain(TURN, *STRONG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        run = first._segments[0]
        source = draws()
        steps = [source.op(step.key) for step in run.kornia_steps]
        constants = counters(steps, run.counts, torch.device("cpu"))
        with Count() as count:
            run.whole(pictures(), source.ids, constants, {}, None)
    assert len(count.seen) > 50 and not WAITS & set(count.seen)


def test_gathering_does_look():
    """The counter above can count."""
    with Count() as count:
        chain(*STRONG, compile=False)(pictures(), draws())
    assert WAITS & set(count.seen)


def test_a_missing_compiler_is_said_once_if_it_was_asked_for(monkeypatch):
    from augment.fuse import compiler

    monkeypatch.setattr(compiler, "missing_compiler", lambda device: "no compiler here")
    compiler.backend_for.cache_clear()
    first = chain(*STRONG, compile=True)
    with pytest.warns(UserWarning, match="runs without compiled passes: no compiler here"):
        view = first(pictures(), draws())
    assert torch.equal(view, first(pictures(), draws()))
    assert torch.equal(view, chain(*STRONG, compile="auto")(pictures(), draws()))
    compiler.backend_for.cache_clear()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own imports
def test_compiled_by_torch(monkeypatch):
    """What is for a GPU, made for the CPU."""
    recipe = [CROP, FLIP, {**JITTER, "order": [0, 1, 2, 3]}, ERASE]
    plain, compiled = chain(*recipe), chain(*recipe)
    expected = [plain(pictures(batch), draws(batch), spec=SPEC) for batch in (8, 6, 4)]
    monkeypatch.setattr("augment.fuse.run.backend_for", lambda device, wanted: "torch.compile")
    torch._dynamo.utils.counters.clear()
    for batch, view in zip((8, 6, 4), expected):
        # In units of the std: 1e-5 of the pixels' range is 4.5e-5.
        torch.testing.assert_close(compiled(pictures(batch), draws(batch), spec=SPEC), view, rtol=0, atol=3e-5)
    assert torch._dynamo.utils.counters["frames"]["total"] <= 3  # one for the first size, one for all sizes


def test_a_chain_can_be_copied():
    first = pickle.loads(pickle.dumps(chain(*STRONG)))
    assert torch.equal(first(pictures(), draws()), chain(*STRONG)(pictures(), draws()))


def test_fused_kornia_operations_are_users_of_the_contract():
    assert all(
        isinstance(step.operation, SampledOp) and isinstance(step.user, FusedKorniaOp) for step in chain(*STRONG).steps
    )
    assert math.isclose(chain(JITTER).steps[0].user.p, 0.8)
