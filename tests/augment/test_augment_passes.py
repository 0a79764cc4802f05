"""The passes in C: each against torch's operators, at awkward sizes; threads; the library and its compiler."""

import os
import subprocess
import tempfile

import pytest
import torch

from augment.chain import Chain
from augment.draws import Draws
from augment.fuse import passes
from augment.fuse.blur import filtered
from augment.fuse.geometry import axis_map, warp
from augment.fuse.passes import PADDINGS, Instruction, Kind, NoCompiler, carried_out, instruction, linear
from augment.kornia_ops.grayscale import gray
from augment.kornia_ops.hue import hue_rotated
from augment.recipe import Op
from augment.views import InputSpec

SIZES = [(3, 8, 8), (3, 33, 41), (1, 17, 64), (4, 3, 5), (3, 1, 1), (2, 5, 40)]
EVERY = torch.ones(4)


def floats(channels, height, width, batch=4):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


def close(made, expected, atol=1e-6):
    torch.testing.assert_close(made, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", SIZES)
def test_reading_is_grid_sampling(shape, padding):
    """Enlarged, shrunk and mirrored, within the image and far beyond its border."""
    images = floats(*shape)
    height, width = shape[1:]
    numbers = torch.tensor(
        [[0.7, 1.2, 0.6, 0.4], [1.3, -2.1, 1.9, -3.3], [-1.0, width - 1, 1.0, 0], [3.0, -9.7, -2.5, 20.2]]
    )
    back = axis_map(*numbers.double().unbind(1))
    made = carried_out([Instruction(Kind.READ, numbers.double(), PADDINGS.index(padding))], images, (13, 37))
    expected = warp(images, back, (13, 37), (), True, "bilinear", padding)
    close(made, expected, 3e-5)  # grid_sample's grid is what is inexact: in [-1, 1], in single precision
    assert torch.equal(made[2, :, : min(13, height), : min(37, width)], images[2].flip(2)[:, :13, :37])


def test_bytes_are_read_as_floats_are():
    images = torch.randint(0, 256, (4, 3, 20, 22), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    numbers = torch.tensor([0.7, 1.25, 0.6, 0.4], dtype=torch.float64).repeat(4, 1)
    program = [Instruction(Kind.READ, numbers)]
    assert torch.equal(carried_out(program, images, (24, 25)), carried_out(program, images * (1 / 255), (24, 25)))


@pytest.mark.parametrize("shape", SIZES)
def test_filters(shape):
    images = floats(*shape)
    sizes = [min(n, 2 * side - 1) for n, side in zip((5, 9), shape[1:])]
    kernels = [torch.rand(4, size, generator=torch.Generator().manual_seed(size)) for size in sizes]
    kernels = [kernel / kernel.sum(1, keepdim=True) for kernel in kernels]
    made = carried_out(
        [instruction(Kind.BLUR, torch.tensor([1, 0, 1, 1]), *kernels, first=sizes[0], second=sizes[1])],
        images,
        shape[1:],
    )
    expected = filtered(images, *kernels)
    close(made[[0, 2, 3]], expected[[0, 2, 3]])
    assert torch.equal(made[1], images[1])


def test_a_kernel_without_weight_at_its_ends_is_as_long_as_it_needs():
    images = floats(3, 9, 9)
    kernel = torch.tensor([0.0, 0.2, 0.5, 0.3, 0.0]).repeat(4, 1)
    made = carried_out([instruction(Kind.BLUR, EVERY, kernel, kernel, first=5, second=5)], images, (9, 9))
    close(made, filtered(images, kernel, kernel))


def test_colors():
    images = floats(3, 11, 13) * 1.4 - 0.2
    unit = images.clamp(0, 1)

    def made(built):
        return carried_out([built], images, (11, 13))

    def jitter(*steps):
        return made(instruction(Kind.JITTER, EVERY, [len(steps)], [number for step in steps for number in step]))

    luma = gray(unit)
    close(jitter((0, 1.3)), (unit * 1.3).clamp(0, 1))
    close(jitter((1, 0.6)), (0.6 * unit + 0.4 * luma.mean((2, 3), keepdim=True)).clamp(0, 1))
    close(jitter((2, 1.5)), (1.5 * unit - 0.5 * luma).clamp(0, 1))
    close(jitter((3, 0.2)), hue_rotated(unit, torch.full((4, 1, 1, 1), 0.2)), 3e-6)
    close(jitter((-1, 9.0)), unit)
    close(
        jitter((0, 1.3), (1, 0.6)),
        (0.6 * (b := (unit * 1.3).clamp(0, 1)) + 0.4 * gray(b).mean((2, 3), True)).clamp(0, 1),
    )
    close(made(instruction(Kind.GRAY, EVERY, [0.2, 0.3, 0.5])), gray(images, (0.2, 0.3, 0.5)).expand_as(images))
    moved = (unit + 0.1).clamp(0, 1)
    close(made(instruction(Kind.SOLARIZE, EVERY, [0.6], [0.1])), torch.where(moved < 0.6, moved, 1 - moved))
    scale, shift = torch.tensor([2.0, 0.5, 1.0]), torch.tensor([0.3, 0.0, -0.2])
    for before, after in ((False, False), (True, False), (False, True), (True, True)):
        x = (unit if before else images) * scale.view(3, 1, 1) + shift.view(3, 1, 1)
        close(made(linear(EVERY, 3, scale.tolist(), shift.tolist(), (before, after))), x.clamp(0, 1) if after else x)


def test_the_hue_of_grays_and_of_primary_colors():
    rows = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]]
    images = torch.tensor(rows, dtype=torch.float32).t().reshape(1, 3, 3, 3)
    built = instruction(Kind.JITTER, torch.ones(1), [1], [3, 1 / 3])
    expected = images[:, [2, 0, 1]]  # a third of the circle: red becomes green
    close(carried_out([built], images, (3, 3)), expected, 3e-6)


def test_boxes_that_leave_the_image():
    images = floats(3, 10, 12)
    boxes = torch.tensor([[-3, -2, 6, 5], [8, 9, 50, 50], [2, 3, 0, 4], [-20, 0, 5, 5]])
    values = torch.tensor([0.1, 0.2, 0.3]).expand(4, 3)
    made = carried_out([instruction(Kind.ERASE, EVERY, boxes, values)], images, (10, 12))
    expected = images.clone()
    expected[0, :, :3, :3] = expected[1, :, 8:, 9:] = values[0].view(3, 1, 1)
    assert torch.equal(made, expected)


def test_numbers_that_are_none_stay_within_the_image():
    images, nan, far = floats(3, 6, 7), float("nan"), 1e300
    for padding in range(len(PADDINGS)):
        numbers = torch.tensor(
            [[nan, 0, 1, 0], [1, far, 1, -far], [1, 0, 1, nan], [-far, 0, far, 0]], dtype=torch.float64
        )
        assert carried_out([Instruction(Kind.READ, numbers, padding)], images, (6, 7)).shape == images.shape
    boxes = torch.tensor([[nan, 0, 3, 3], [0, nan, 3, 3], [0, 0, nan, far], [-far, far, 1, 1]])
    assert carried_out([instruction(Kind.ERASE, EVERY, boxes, [0.0] * 3)], images, (6, 7)).shape == images.shape


class Long:
    def sample(self, draws, shape):
        return {"drawn": draws.bernoulli(0, 1.0)}

    def kernel(self, params, shape):
        return torch.full((shape[0], 3), 1 / 3), torch.full((shape[0], 201), 1 / 201)


def test_a_kernel_longer_than_the_image():
    built = Chain([Op.of(f"{__name__}:Long")], (96, 96))
    with pytest.raises(ValueError, match=r"Long filters with 201 numbers, .* only 96 wide"):
        built(pictures()[..., :96, :96], draws())


def strong(**settings):
    recipe = [
        Op.of("RandomResizedCrop", scale=[0.3, 1.0]),
        Op.of("ColorJitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        Op.of("RandomGrayscale", p=0.2),
        Op.of("RandomGaussianBlur", kernel_size=[9, 9], sigma=[0.1, 2.0], p=0.5),
        Op.of("RandomErasing", p=0.25),
    ]
    return Chain(recipe, (96, 96), **settings)


def pictures(batch=9):
    shape = (batch, 3, 100, 110)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def draws(batch=9, first=0):
    return Draws(0, 0, "student", torch.arange(first, first + batch))


def test_the_number_of_threads_changes_nothing():
    built, before, images = strong(), torch.get_num_threads(), pictures()
    expected = built(images, draws())
    try:
        torch.set_num_threads(3)
        assert torch.equal(built(images, draws()), expected)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(built(images[4:6], draws(2, 4)), expected[4:6])


def test_images_of_any_layout():
    built, images = strong(), pictures()
    expected = built(images, draws())
    assert torch.equal(built(images.contiguous(memory_format=torch.channels_last), draws()), expected)
    assert torch.equal(
        built(torch.cat([images, images])[::2], draws()), built(torch.cat([images, images])[::2].clone(), draws())
    )
    close(built(images.double() / 255, draws()), expected, 1e-6)
    assert built(images, draws(), spec=InputSpec((96, 96)), dtype=torch.bfloat16).dtype == torch.bfloat16


class Doubled:
    """A user's color, which C does not know."""

    def sample(self, draws, shape):
        return {"drawn": draws.bernoulli(0, 0.5)}

    def color(self, images, params):
        return images * 2


def test_what_c_does_not_know_is_done_between():
    recipe = [
        *("RandomHorizontalFlip", "RandomGrayscale", f"{__name__}:Doubled", "RandomInvert"),
        *({"type": "RandomResizedCrop"}, {"type": "RandomRotation", "degrees": 20}, "RandomSolarize"),
    ]
    built, plain = (Chain([Op.model_validate(op) for op in recipe], (40, 40), compile=c) for c in ("auto", False))
    stretches = built.passes.segments[0].stretches()
    assert [in_c for in_c, _ in stretches] == [True, False, True, False, True]
    close(built(pictures(), draws()), plain(pictures(), draws()), 1e-5)
    assert "on a CPU" in built.plan() and "Doubled" in built.plan().splitlines()[-1]


def test_gradients_go_by_torch():
    images = (pictures() / 255).requires_grad_()
    strong()(images, draws()).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


# --- The library ---------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Nothing compiled yet, and a temporary folder to look into."""
    passes.library.cache_clear()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    passes.library.cache_clear()


def test_it_is_compiled_once_and_leaves_nothing_behind(fresh, monkeypatch):
    passes.library()
    assert not os.listdir(fresh)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("compiled again"))
    passes.library()


def test_a_result_that_cannot_be_loaded(fresh, monkeypatch):
    monkeypatch.setattr(passes, "_compiled", lambda compiler, target: target)
    with pytest.raises(NoCompiler, match="could not be loaded"):
        passes.library()


def test_no_compiler(fresh, monkeypatch):
    monkeypatch.setenv("CC", "")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoCompiler, match="no C compiler is found; install gcc, or set CC"):
        passes.library()


def test_a_compiler_that_fails(fresh, monkeypatch):
    monkeypatch.setenv("CC", "false --really")
    with pytest.raises(NoCompiler, match=r"false --really .* failed"):
        passes.library()
    assert not os.listdir(fresh)
