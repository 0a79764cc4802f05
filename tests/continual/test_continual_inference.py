"""Task inference: from each image alone, and right where tasks have different numbers of classes."""

import pytest
import torch

from augment.base import Registry
from distill.continual.errors import ContinualError

RULES = {name: s.component(s()) for name, s in Registry("distill.continual.inference", "TaskInference").known().items()}
TASKS = {"trees": ["oak", "ash"], "birds": ["owl"], "fish": ["cod", "eel", "ide"]}
NAMES = [name for classes in TASKS.values() for name in classes]
GENERATOR = torch.Generator().manual_seed(0)
CENTERS = 20 * torch.randn(6, 5, generator=GENERATOR)
LABELS = torch.arange(6).repeat(10)
FEATURES = CENTERS[LABELS] + torch.randn(60, 5, generator=GENERATOR)
TRUTH = torch.tensor([0, 0, 1, 2, 2, 2])[LABELS]


def fit(name):
    rule = RULES[name]
    random = torch.Generator().manual_seed(1)
    if rule.reads == "logits":
        rule.fit(TASKS)
        logits = {task: torch.randn(256, len(classes), generator=random) for task, classes in TASKS.items()}
        return rule, {"logits": logits}
    sums = rule.head().new_sums(5)
    rule.head().update(sums, FEATURES, LABELS, NAMES)
    rule.fit(TASKS, sums)
    return rule, {"features_ND": 20 * torch.randn(256, 5, generator=random)}


def rows(inputs, index):
    if "logits" in inputs:
        return {"logits": {task: logits[index] for task, logits in inputs["logits"].items()}}
    return {"features_ND": inputs["features_ND"][index]}


@pytest.mark.parametrize("name", RULES)
def test_each_image_alone(name):
    rule, inputs = fit(name)
    together = rule.infer(**inputs)
    assert torch.equal(together, torch.cat([rule.infer(**rows(inputs, slice(n, n + 1))) for n in range(256)]))
    assert rule.scores(**inputs).shape == (256, 3) and together.unique().numel() > 1


@pytest.mark.parametrize("name", ["ncm", "mahalanobis"])
def test_images_near_a_class_belong_to_its_task(name):
    rule, _ = fit(name)
    assert torch.equal(rule.infer(FEATURES), TRUTH)


def test_mahalanobis_weighs_directions_by_how_classes_vary():
    wide = torch.tensor([[-10.0, 0.0], [10.0, 0.0], [-4.0, 2.0], [16.0, 2.0]])  # classes vary along the first axis only
    image = torch.tensor([[5.0, 0.2]])  # nearer to the mean of the second class, but on the line of the first
    known = Registry("distill.continual.inference", "TaskInference").known()
    inferred = {}
    for name, given in (("mahalanobis", {"shrinkage": 0.01}), ("ncm", {})):
        rule = known[name].component(known[name](**given))
        sums = rule.head().new_sums(2)
        rule.head().update(sums, wide, torch.tensor([0, 0, 1, 1]), ["a", "b"])
        rule.fit({"first": ["a"], "second": ["b"]}, sums)
        inferred[name] = rule.tasks[rule.infer(image)]
    assert inferred == {"mahalanobis": "first", "ncm": "second"}


def test_logits_by_hand():
    logits = {
        "trees": torch.tensor([[5.0, 5.0]]),
        "birds": torch.tensor([[4.0]]),
        "fish": torch.tensor([[0.0, 3.0, 0.0]]),
    }
    for name in ("max_logit", "entropy"):
        RULES[name].fit(TASKS)
    assert RULES["max_logit"].scores(logits=logits).tolist() == [[5.0, 4.0, 3.0]]
    p = torch.tensor([0.0, 3.0, 0.0]).softmax(0)
    entropy = -(p * p.log()).sum() / torch.tensor(3.0).log()
    expected = torch.tensor([[-1.0, -1.0, -entropy]])
    torch.testing.assert_close(RULES["entropy"].scores(logits=logits), expected)
    assert RULES["entropy"].infer(logits=logits).item() == 2


def test_softmax_of_a_single_class_is_certain():
    settings = Registry("distill.continual.inference", "TaskInference").settings_of("max_logit")
    rule = settings.component(settings(softmax=True))
    rule.fit({"trees": ["oak", "ash"], "birds": ["owl"]})
    assert rule.scores(logits={"trees": torch.tensor([[50.0, 0.0]]), "birds": torch.tensor([[0.0]])})[0, 1] == 1


def test_certain_logits_give_no_nan():
    RULES["entropy"].fit({"trees": ["oak", "ash"]})
    assert RULES["entropy"].scores(logits={"trees": torch.tensor([[0.0, -1e30]])}).item() == 0


def test_what_is_missing_is_named():
    settings = Registry("distill.continual.inference", "TaskInference").known()
    fresh = {name: s.component(s()) for name, s in settings.items()}
    with pytest.raises(ContinualError, match="entropy is not fitted"):
        fresh["entropy"].scores(logits={})
    with pytest.raises(ContinualError, match="task 'birds' has no class"):
        fresh["entropy"].fit({"birds": []})
    with pytest.raises(ContinualError, match="at least one task"):
        fresh["entropy"].fit({})
    with pytest.raises(ContinualError, match="ncm is fitted from sums"):
        fresh["ncm"].fit(TASKS)
    rule, _ = fit("entropy")
    with pytest.raises(ContinualError, match="entropy reads logits of the tasks trees, birds, fish"):
        rule.scores(FEATURES)
    rule, _ = fit("ncm")
    with pytest.raises(ContinualError, match="ncm reads features"):
        rule.scores(logits={})
