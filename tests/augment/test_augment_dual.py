"""Two views of a batch under every policy."""

import pytest
import torch
from pydantic import BaseModel, ValidationError

from augment.chain import eval_view, normalized, to_unit
from augment.draws import sample_key
from augment.dual import AugmentSettings, DualAugment
from augment.views import InputSpec

IMAGES = torch.randint(0, 256, (6, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([sample_key(f"image {n}") for n in range(6)])
TEACHER = InputSpec((32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
STUDENT = InputSpec((24, 24), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PLAIN = InputSpec((24, 24), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
POLICIES = ["identical", "independent", "shared_geometry", "weak_teacher", "both_to_both", "multicrop"]
CROP = {"type": "RandomResizedCrop", "scale": [0.3, 1.0]}
JITTER = {"type": "ColorJitter", "brightness": 0.5, "hue": 0.3}


class Config(BaseModel):
    augment: AugmentSettings


def dual(policy, teachers=(TEACHER,), spec=STUDENT, seed=0, **settings):
    return DualAugment(AugmentSettings(policy=policy, **settings), teachers, spec, seed)


def tensors(views):
    return [view for network in views.teacher for view in network] + list(views.student)


def undo(view, spec):
    return view * torch.tensor(spec.std).view(3, 1, 1) + torch.tensor(spec.mean).view(3, 1, 1)


@pytest.mark.parametrize("policy", POLICIES)
def test_shapes_pairs_and_determinism(policy):
    augment = dual(policy)
    state = torch.get_rng_state()
    views = augment(IMAGES, IDS, 0)
    seen = {"both_to_both": (2, 2, 4), "multicrop": (2, 6, 10)}.get(policy, (1, 1, 1))
    assert (len(views.teacher[0]), len(views.student), len(views.pairs)) == seen
    assert all(view.shape == (6, 3, 32, 32) for view in views.teacher[0])
    assert all(view.shape == (6, 3, 24, 24) for view in views.student[:2])
    assert all(view.shape == (6, 3, 12, 12) for view in views.student[2:])
    assert all(t < seen[0] and s < seen[1] for t, s in views.pairs)
    again = dual(policy)(IMAGES, IDS, 0)
    assert all(map(torch.equal, tensors(views), tensors(again)))
    for other in (augment(IMAGES, IDS, 1), dual(policy, seed=1)(IMAGES, IDS, 0), augment(IMAGES, IDS + 1, 0)):
        assert not any(map(torch.equal, tensors(views), tensors(other)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_sample_does_not_depend_on_its_batch(policy):
    """Any worker, rank or restart makes the same views of a sample."""
    augment = dual(policy)
    together = tensors(augment(IMAGES, IDS, 3))
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    for whole, shuffled in zip(together, tensors(augment(IMAGES[order], IDS[order], 3))):
        torch.testing.assert_close(shuffled, whole[order], rtol=0, atol=1e-5)
    for n in range(3):
        for whole, alone in zip(together, tensors(augment(IMAGES[n : n + 1], IDS[n : n + 1], 3))):
            torch.testing.assert_close(alone, whole[n : n + 1], rtol=0, atol=1e-5)


def test_randomness_differs_by_sample_and_epoch():
    """Other libraries' mistake: the same draws in all workers, and again in every epoch."""
    augment = dual("independent", spec=PLAIN)
    same = IMAGES[:1].expand(8, -1, -1, -1)
    ids = torch.arange(8)
    seen = torch.cat(
        [view for epoch in range(5) for view in tensors(augment(same, ids, epoch)) if view.shape[-1] == 24]
    )
    assert len(seen.flatten(1).unique(dim=0)) == 40


def test_identical_is_one_view_normalized_twice():
    views = dual("identical", [InputSpec(STUDENT.size, TEACHER.mean, TEACHER.std)])(IMAGES, IDS, 0)
    torch.testing.assert_close(undo(views.teacher[0][0], TEACHER), undo(views.student[0], STUDENT))
    same = dual("identical", [STUDENT])(IMAGES, IDS, 0)
    assert same.teacher[0][0] is same.student[0]  # not made twice


def test_independent_views_differ_even_with_one_recipe():
    views = dual("independent", [STUDENT])(IMAGES, IDS, 0)
    assert not torch.equal(views.teacher[0][0], views.student[0])


def test_shared_geometry_is_the_same_crop_with_other_colors():
    """Color operations do not move the ramp: positions agree, colors do not."""
    ramp = torch.linspace(0.2, 0.8, 40).view(1, 1, 1, 40).expand(6, 3, 40, 40)
    augment = dual("shared_geometry", [PLAIN], PLAIN, student=[CROP, "RandomHorizontalFlip", JITTER])
    views = augment(ramp, IDS, 0)
    teacher, student = views.teacher[0][0], views.student[0]
    assert not torch.allclose(teacher, student)
    plain = dual("shared_geometry", [PLAIN], PLAIN, student=[CROP, "RandomHorizontalFlip"])(ramp, IDS, 0)
    assert torch.equal(plain.teacher[0][0], plain.student[0])
    assert torch.equal(plain.teacher[0][0], teacher)  # the teacher has no photometry unless given one
    own = dual("shared_geometry", [PLAIN], PLAIN, student=[CROP, JITTER], teacher=[JITTER])(ramp, IDS, 0)
    assert not torch.allclose(own.teacher[0][0], own.student[0])


def test_shared_geometry_at_two_sizes_is_the_same_part_of_the_image():
    ramp = torch.linspace(0, 1, 64).view(1, 1, 1, 64).expand(6, 3, 64, 64)
    big = InputSpec((48, 48), PLAIN.mean, PLAIN.std)
    views = dual("shared_geometry", [big], PLAIN, student=[CROP, "RandomHorizontalFlip"])(ramp, IDS, 0)
    ends = [view[:, 0, 0][:, [0, -1]] for view in (views.teacher[0][0], views.student[0])]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-4)


def test_weak_teacher_sees_more_of_the_image():
    ramp = torch.linspace(0, 1, 64).view(1, 1, 1, 64).expand(64, 3, 64, 64)
    views = dual("weak_teacher", [PLAIN], PLAIN, student=[CROP])(ramp, torch.arange(64), 0)
    seen = [(view[:, 0, 0, 0] - view[:, 0, 0, -1]).abs().mean() for view in (views.teacher[0][0], views.student[0])]
    assert seen[0] > 0.85 and seen[0] > seen[1] + 0.05


def test_both_to_both_shows_both_networks_both_views():
    views = dual("both_to_both", [STUDENT], STUDENT)(IMAGES, IDS, 0)
    assert all(map(torch.equal, views.teacher[0], views.student))
    assert not torch.equal(views.student[0], views.student[1])
    assert set(views.pairs) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_multicrop_pairs_every_global_with_every_other_crop():
    views = dual("multicrop", [STUDENT], STUDENT, local=[{"crops": 2, "size": 16}])(IMAGES, IDS, 0)
    assert set(views.pairs) == {(0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)}
    assert [view.shape[-1] for view in views.student] == [24, 24, 16, 16]
    assert all(map(torch.equal, views.teacher[0], views.student[:2]))
    assert not torch.equal(views.student[2], views.student[3])


def test_multicrop_has_a_group_of_crops_for_every_size():
    """As SwAV's 2 x 224 + 6 x 96, and DINO's own recipe for the small ones."""
    groups = [{"crops": 2, "size": 16, "recipe": "dino_local"}, {"crops": 1, "size": 12, "scale": [0.05, 0.1]}]
    augment = dual("multicrop", [STUDENT], STUDENT, local=groups, student="simclr")
    assert [view.shape[-1] for view in augment(IMAGES, IDS, 0).student] == [24, 24, 16, 16, 12]
    recipes = [view_spec.recipe for view_spec in augment.view_plan.student[2:]]
    assert [recipe[0].arguments["scale"] for recipe in recipes] == [[0.05, 0.3], [0.05, 0.3], [0.05, 0.1]]
    jitter = [next(op.arguments["brightness"] for op in recipe if op.type == "ColorJitter") for recipe in recipes]
    assert jitter == [0.4, 0.4, 0.8]  # DINO's, and the student's own
    assert len({view_spec.key for view_spec in augment.view_plan.student}) == 5


@pytest.mark.parametrize("policy", POLICIES)
def test_without_a_teacher_each_student_view_counts_once(policy):
    views = dual(policy, teachers=())(IMAGES, IDS, 0)
    with_teacher = dual(policy)(IMAGES, IDS, 0)
    assert views.teacher == () and views.pairs == tuple((0, n) for n in range(len(views.student)))
    assert all(map(torch.equal, views.student, with_teacher.student))


def test_several_teachers_share_a_view_at_their_own_size():
    third = InputSpec(TEACHER.size, STUDENT.mean, STUDENT.std)
    views = dual("independent", [TEACHER, STUDENT, third, TEACHER])(IMAGES, IDS, 0)
    assert [network[0].shape[-1] for network in views.teacher] == [32, 24, 32, 32]
    torch.testing.assert_close(undo(views.teacher[0][0], TEACHER), undo(views.teacher[2][0], third))
    assert views.teacher[0][0] is views.teacher[3][0]


def test_no_operations_at_all():
    views = dual("independent", student=[], teacher=[])(IMAGES, IDS, 0)
    assert torch.equal(views.student[0], eval_view(IMAGES, STUDENT))
    assert torch.equal(views.teacher[0][0], eval_view(IMAGES, TEACHER))


def test_autocast_and_gradients_stay_out():
    augment = dual("shared_geometry", student=[CROP, {"type": "RandomAffine", "degrees": 30}])
    plain = augment(IMAGES, IDS, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = augment(to_unit(IMAGES).requires_grad_(), IDS, 0)
    assert all(map(torch.equal, tensors(plain), tensors(cast)))
    assert not any(view.requires_grad for view in tensors(cast))


def test_train_or_eval_and_state_make_no_difference():
    augment = dual("weak_teacher")
    assert all(map(torch.equal, tensors(augment.train()(IMAGES, IDS, 0)), tensors(augment.eval()(IMAGES, IDS, 0))))
    assert augment.state_dict() == {}


@pytest.mark.parametrize(
    "settings, path, message",
    [
        ({"policy": "shard_geometry"}, "policy", "'shared_geometry'"),
        ({"policy": "identical", "teacher": []}, "teacher", "leave teacher out"),
        (
            {"policy": "shared_geometry", "teacher": ["RandomVerticalFlip", JITTER], "student": [CROP]},
            "teacher",
            "needs the student's geometric operations, [{'type': 'RandomResizedCrop', 'scale': [0.3, 1.0]}], "
            "but the teacher's are [RandomVerticalFlip]",
        ),
        (
            {"local": [{"crops": 3}]},
            "local",
            "only policy 'multicrop' has local crops, but the policy is 'weak_teacher'",
        ),
        (
            {"policy": "multicrop", "local": [{"scale": [0.3, 0.1]}]},
            "local.0.scale",
            "the smaller fraction comes first",
        ),
        ({"policy": "multicrop", "local": [{"crops": 0}]}, "local.0.crops", "greater than or equal to 1"),
        ({"policy": "multicrop", "local": []}, "local", "at least 1 item"),
        ({"studnt": []}, "studnt", "did you mean 'student'?"),
        ({"student": ["RandomFlip"]}, "student.0.type", "no operation is called 'RandomFlip'"),
    ],
)
def test_a_mistake_is_named_with_its_key(settings, path, message):
    with pytest.raises(ValidationError) as caught:
        Config(augment=settings)
    (error,) = caught.value.errors()
    assert ".".join(map(str, error["loc"])) == f"augment.{path}" and message in error["msg"]


@pytest.mark.parametrize("policy", POLICIES)
def test_settings_survive_being_written_and_read(policy):
    settings = AugmentSettings(policy=policy)
    assert AugmentSettings.model_validate(settings.model_dump(mode="json")) == settings


def test_a_crop_of_the_networks_own_pixels_cannot_be_shared_between_sizes():
    for policy in ("identical", "shared_geometry", "both_to_both"):
        with pytest.raises(ValueError, match=r"RandomCrop needs its argument 'size': .*\[\(24, 24\), \(32, 32\)\]"):
            dual(policy, student=["RandomCrop"])
        dual(policy, student=[{"type": "RandomCrop", "size": [30, 30]}])
    dual("independent", student=["RandomCrop"])


@pytest.mark.parametrize(
    "images, ids, message",
    [
        (IMAGES[0], IDS, r"images must be \[B, 3, H, W\] with B > 0, not \[3, 40, 40\]"),
        (IMAGES[:0], IDS[:0], "with B > 0"),
        (IMAGES, IDS[:5], r"6 images need ids \[6\], not \[5\]"),
        (IMAGES, IDS.float(), "must be int64"),
    ],
)
def test_wrong_input_is_refused(images, ids, message):
    with pytest.raises(ValueError, match=message):
        dual("weak_teacher")(images, ids, 0)


def test_normalized_uses_each_networks_own_numbers():
    views = dual("independent", [TEACHER], TEACHER, student=[], teacher=[])(IMAGES, IDS, 0)
    torch.testing.assert_close(normalized(undo(views.student[0], TEACHER), TEACHER), views.teacher[0][0])


def test_spectrograms_are_seen_in_two_views_too() -> None:
    """One channel, a shape of its own, values far from [0, 1], and a normalization of one number."""
    spec = InputSpec((40, 64), mean=(-20.0,), std=(10.0,), bounded=False)
    sounds = torch.randn(4, 1, 40, 64, generator=torch.Generator().manual_seed(0)) * 10 - 20
    masks = {"type": "SpecAugment", "frequency_width": 10, "time_width": 20, "fill": "mean"}
    settings = AugmentSettings.model_validate({"policy": "independent", "student": [masks], "teacher": []})
    dual = DualAugment(settings, (spec,), spec, seed=0)
    views = dual(sounds, torch.arange(4), 0)
    torch.testing.assert_close(views.teacher[0][0], (sounds + 20) / 10)
    changed = views.student[0] != views.teacher[0][0]
    assert changed.any(dim=(1, 2, 3)).all() and not changed.all(), "bands are masked, the rest is as it was"
    with pytest.raises(ValueError, match=r"images must be \[B, 1, H, W\]"):
        dual(torch.zeros(4, 3, 40, 64), torch.arange(4), 0)
    with pytest.raises(ValueError, match="expect different kinds"):
        DualAugment(settings, (InputSpec((40, 64)),), spec, seed=0)
