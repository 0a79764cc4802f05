"""KTN on images: the student reads a smaller view, and what ships is the teacher's classifier times the learned map."""

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import experiment, student_fit

from augment.dual import DualAugment
from augment.views import InputSpec
from distill.config import load_config
from distill.deltas.sites import classifier_names
from distill.deltas.state import head_state
from distill.export.delta.io import load_delta, save_delta
from distill.export.targets.timm_folder import write_timm_folder
from distill.models.network import create_network
from distill.models.settings import NetworkSettings
from distill.objectives.simkd import SimKD
from distill.training.module import Distillation


def test_in_the_recipe_of_two_modalities_the_same_crop_is_gray_for_the_student() -> None:
    """The test images are gray too, and the training images are not."""
    settings = load_config(Path(__file__).parents[2] / "configs/transfer/ktn_gray.yaml")
    assert settings.data.source.splits == ("test",)
    assert [each.type for each in settings.data.source.operations] == ["RandomGrayscale"]
    augment = settings.augment.model_copy(
        update={"student": [*settings.augment.student[:2], settings.augment.student[3]]}
    )
    spec = InputSpec((16, 16), (0.0,) * 3, (1.0,) * 3)
    images = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    views = DualAugment(augment, [spec], spec, seed=0)(images, torch.arange(4), 0)
    [color], [gray] = views.teacher[0], views.student
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert not torch.allclose(color[:, 0], color[:, 1], atol=0.1)
    torch.testing.assert_close(gray, (color * weights).sum(1, keepdim=True).expand_as(gray), atol=1e-3, rtol=0)


@pytest.mark.slow
def test_what_ships_is_the_teachers_classifier_times_the_map(tmp_path: Path) -> None:
    """Features mapped by A, classified by W_t: on the delta file and the merged folder, read from their files."""
    changes: dict[str, Any] = {
        "student": {"network": {"size": 24}},  # of the same images, of which the teacher sees 32 pixels
        "augment": {"policy": "shared_geometry", "student": ["RandomHorizontalFlip"]},
        "objectives": [{"type": "ce"}, {"type": "simkd", "weight": 0.5}],
        "training": {"epochs": 1, "ema": None},
    }
    settings, terms = experiment(tmp_path, **changes), []

    def keep(module: Distillation) -> None:
        terms[:] = [part for part in module.step.terms.modules() if isinstance(part, SimKD)]

    student = student_fit(settings, tmp_path / "fit", keep).student
    assert student is not None and settings.teacher is not None
    (term,) = terms
    teacher = create_network(settings.teacher.networks[0]).model.get_classifier()
    with torch.no_grad():
        weight = teacher.weight @ term.projector.weight
        bias = teacher.weight @ term.projector.bias + teacher.bias
    save_delta(tmp_path / "delta", student.model, student.backbone, origin="x")
    write_timm_folder(tmp_path / "merged", student.model, origin="x")
    loaded = load_delta(tmp_path / "delta", create_network(settings.student.network, 4).model)
    merged = create_network(NetworkSettings(model=f"local-dir:{tmp_path / 'merged'}", size=24)).model
    for model in (loaded, merged):
        head = head_state(model, classifier_names(model))
        assert [tensor.shape for tensor in head.values()] == [weight.shape, bias.shape], (
            "the student's own architecture"
        )
        assert torch.equal(model.get_classifier().weight, weight) and torch.equal(model.get_classifier().bias, bias)
    x = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mapped = term.projector(merged.forward_head(merged.forward_features(x), pre_logits=True))
        torch.testing.assert_close(merged(x), teacher(mapped), rtol=1e-5, atol=1e-5)
