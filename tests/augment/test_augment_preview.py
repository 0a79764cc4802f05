"""The contact sheet shows what the networks see."""

import numpy as np
import pytest
import torch

from augment.dual import AugmentSettings, DualAugment
from augment.preview import contact_sheet, denormalized
from augment.views import InputSpec

TEACHER = InputSpec((48, 48), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
STUDENT = InputSpec((32, 32))
COLORS = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]


def sheet_of(policy="both_to_both", teachers=(TEACHER,), **keywords):
    images = torch.stack([torch.tensor(c, dtype=torch.uint8).view(3, 1, 1).expand(3, 60, 80) for c in COLORS])
    views = DualAugment(AugmentSettings(policy=policy, student=[]), teachers, STUDENT, 0)(images, torch.arange(3), 0)
    return contact_sheet(images, views, teachers, STUDENT, **keywords)


def test_normalization_is_undone():
    pixel = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1)
    view = DualAugment(AugmentSettings(student=[], teacher=[]), (), InputSpec((1, 1)), 0)(pixel, torch.arange(1), 0)
    assert torch.equal(denormalized(view.student[0], InputSpec((1, 1))), pixel)


def test_every_image_appears_once_per_column_in_its_own_color():
    pixels = np.asarray(sheet_of(cell=96)).astype(int)
    areas = [int((np.abs(pixels - color).max(-1) <= 1).sum()) for color in COLORS]
    # The original keeps its 80 x 60 shape; the teacher's views fill the cell, the student's are 32/48 of it.
    assert areas == [96 * 72 + 2 * 96 * 96 + 2 * 64 * 64] * 3


def test_without_a_teacher_and_with_titles():
    alone = sheet_of("identical", teachers=())
    assert sheet_of("identical").width > alone.width
    assert sheet_of("identical", teachers=(), titles=["rose", "iris", "a long name"]).width > alone.width


def test_notes_and_footer_take_their_own_room():
    plain = sheet_of()
    noted = sheet_of(notes=[["λ 0.62", "the rest: iris"], [], ["λ 0.62"]])
    assert noted.width > plain.width and noted.height == plain.height
    assert sheet_of(footer=["teacher and student: crops overlap 63% " * 8]).height > plain.height + 20


def test_long_names_are_cut():
    assert sheet_of(titles=["rose" * 50, "a", "b"]).width < sheet_of().width + 220


def test_of_a_larger_batch_the_first_are_shown():
    images = torch.stack([torch.tensor(c, dtype=torch.uint8).view(3, 1, 1).expand(3, 60, 80) for c in COLORS])
    views = DualAugment(AugmentSettings(student=[]), (), STUDENT, 0)(images, torch.arange(3), 0)
    assert contact_sheet(images[:2], views, (), STUDENT).height < contact_sheet(images, views, (), STUDENT).height


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="3 images need as many titles, not 1"):
        sheet_of(titles=["rose"])
    with pytest.raises(ValueError, match="3 images need as many notes, not 2"):
        sheet_of(notes=[["λ 0.3"], []])
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    views = DualAugment(AugmentSettings(student=[]), (), STUDENT, 0)(images, torch.arange(1), 0)
    with pytest.raises(ValueError, match="views are for 0 teachers, but 1 specifications were given"):
        contact_sheet(images, views, (TEACHER,), STUDENT)
