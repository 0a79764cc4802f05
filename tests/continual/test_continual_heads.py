"""Closed-form heads: equal to plain references and to the joint fit, and sound where there is little data."""

import pytest
import torch
from torch import nn
from toy_stream import stream_tree

from augment.base import Registry
from distill.config import validate_tree
from distill.continual.bank_folder import serve_head
from distill.continual.errors import ContinualError
from distill.continual.heads.base import NEVER, LabeledFeatures
from distill.continual.heads.fecam import FeCAM
from distill.continual.heads.linear import LinearHead
from distill.continual.heads.ncm import NearestClassMean
from distill.continual.heads.random_ridge import RandomRidge
from distill.continual.heads.ridge import PENALTIES, Ridge, accuracy, ridge, squared_error
from distill.continual.heads.shared import HeadSums
from distill.continual.heads.slda import SLDA
from distill.export.targets.timm_folder import write_timm_folder
from distill.models.closed_form_head import closed_form, give_head
from distill.models.network import as_network
from distill.models.timm_models import make_model, timm_with_own_models
from distill.models.weights import NetworkError
from distill.yaml_tree import ConfigError

NAMES = ["oak", "ash", "elm"]
GENERATOR = torch.Generator().manual_seed(0)
CENTERS = 3 * torch.rand(3, 6, generator=GENERATOR)
LABELS = torch.randint(0, 3, (60,), generator=GENERATOR)
FEATURES = (CENTERS[LABELS] + torch.randn(60, 6, generator=GENERATOR)).abs()
HEADS = {
    "ncm": NearestClassMean(NearestClassMean.Settings()),
    "cosine": NearestClassMean(NearestClassMean.Settings(distance="cosine")),
    "slda": SLDA(SLDA.Settings()),
    "ridge": Ridge(Ridge.Settings()),
    "random_ridge": RandomRidge(RandomRidge.Settings(width=20)),
    "fecam": FeCAM(FeCAM.Settings()),
    "fecam_common": FeCAM(FeCAM.Settings(covariance="common", tukey=None)),
}


def fitted(head, features=FEATURES, labels=LABELS, names=NAMES):
    sums = head.new_sums(features.shape[1])
    head.update(sums, features, labels, names)
    return head.fit(sums)


def means():
    return torch.stack([FEATURES[label == LABELS].double().mean(0) for label in range(3)])


def shifted(logits):
    """Logits up to a part that is equal for all classes."""
    return logits - logits.mean(1, keepdim=True)


def test_every_type_is_tested_here():
    assert {head.settings.type for head in HEADS.values()} == set(Registry("distill.continual.heads", "Head").known())


@pytest.mark.parametrize("name", HEADS)
def test_equals_the_joint_fit_for_any_order_batch_and_split(name):
    head = HEADS[name]
    joint = fitted(head).for_classes(NAMES).logits(FEATURES)
    parts = [head.new_sums(6) for _ in range(3)]
    for label in (2, 0, 1):  # tasks of one class, in batches of 4
        for rows in (label == LABELS).nonzero().flatten().flip(0).split(4):
            head.update(parts[label], FEATURES[rows], LABELS[rows], NAMES)
    stream = head.fit(parts[1] + parts[0] + parts[2]).for_classes(NAMES).logits(FEATURES)
    torch.testing.assert_close(stream, joint, rtol=1e-6, atol=1e-6)
    assert (joint.argmax(1) == LABELS).float().mean() > 0.6


@pytest.mark.parametrize("name", HEADS)
def test_logits_of_an_image_do_not_depend_on_the_batch(name):
    head = fitted(HEADS[name])
    together = head.logits(FEATURES)
    assert torch.equal(torch.cat([head.logits(row[None]) for row in FEATURES]), together)
    assert together.dtype == torch.float32 and head.logits(FEATURES[:0]).shape == (0, 3)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("images", ["few", "single", "constant", "zero", "one class"])
def test_sound_with_little_data(name, images):
    random = torch.Generator().manual_seed(3)
    features, labels, names = {
        "few": (torch.rand(4, 30, generator=random), torch.tensor([0, 0, 1, 1]), NAMES),
        "single": (torch.rand(1, 30, generator=random), torch.tensor([0]), NAMES),
        "constant": (torch.full((6, 5), 7.0), torch.tensor([0, 0, 1, 1, 2, 2]), NAMES),
        "zero": (torch.zeros(4, 5), torch.tensor([0, 1, 0, 1]), NAMES),
        "one class": (torch.rand(9, 4, generator=random), torch.zeros(9, dtype=torch.int64), NAMES),
    }[images]
    head = fitted(HEADS[name], features, labels, names)
    logits = head.logits(features)
    assert logits.isfinite().all() and logits.shape == (len(features), int(labels.max()) + 1)
    if images == "few":
        assert torch.equal(head.for_classes(NAMES).logits(features).argmax(1), labels)


@pytest.mark.parametrize("name", HEADS)
def test_one_image_a_class_is_known_again(name):
    features = 10 * torch.eye(5)
    names = list("abcde")
    head = fitted(HEADS[name], features, torch.arange(5), names).for_classes(names)
    assert torch.equal(head.logits(features).argmax(1), torch.arange(5))


@pytest.mark.parametrize("name", HEADS)
def test_a_class_without_an_image_is_never_predicted(name):
    head = fitted(HEADS[name]).for_classes(["new", *NAMES])
    logits = head.logits(1e4 * FEATURES)  # all logits may be negative
    assert (logits[:, 0] == NEVER).all() and (logits[:, 1:] > NEVER).all()
    masked = fitted(HEADS[name]).for_classes(["elm", "oak"])  # a task's classes
    assert torch.equal(masked.logits(FEATURES), fitted(HEADS[name]).for_classes(NAMES).logits(FEATURES)[:, [2, 0]])


@pytest.mark.parametrize("name", HEADS)
def test_no_image_at_all(name):
    head = HEADS[name]
    with pytest.raises(ContinualError, match="cannot be fitted without an image"):
        head.fit(head.new_sums(3))


def test_nearest_mean_is_the_nearest_mean():
    distances = torch.cdist(FEATURES.double(), means()).square()
    logits = fitted(HEADS["ncm"]).for_classes(NAMES).logits(FEATURES).double()
    torch.testing.assert_close(shifted(logits), shifted(-distances / 2), rtol=1e-5, atol=1e-5)
    cosine = torch.nn.functional.cosine_similarity(FEATURES.double()[:, None], means()[None], dim=2)
    assert torch.equal(fitted(HEADS["cosine"]).for_classes(NAMES).logits(FEATURES).argmax(1), cosine.argmax(1))


def test_a_common_offset_does_not_hide_the_classes():
    offset = 1e6
    plain, far = fitted(HEADS["ncm"]), fitted(HEADS["ncm"], FEATURES.double() + offset)
    torch.testing.assert_close(far.logits(FEATURES.double() + offset), plain.logits(FEATURES), rtol=1e-3, atol=1e-3)


def test_slda_by_hand():
    """Mahalanobis distances with the covariance of the rests, one image at a time."""
    rests = FEATURES.double() - means()[LABELS]
    covariance = rests.T @ rests / 60
    shrunk = 0.8 * covariance + 0.2 * covariance.trace() / 6 * torch.eye(6, dtype=torch.float64)
    inverse = shrunk.inverse()
    distances = torch.tensor([[float((f - m) @ inverse @ (f - m)) for m in means()] for f in FEATURES.double()])
    logits = fitted(SLDA(SLDA.Settings(shrinkage=0.2))).for_classes(NAMES).logits(FEATURES)
    torch.testing.assert_close(shifted(logits), shifted(-distances / 2), rtol=1e-4, atol=1e-4)


def test_slda_of_repeated_labels_in_a_batch():
    """The streaming update of the paper's code is wrong for these; sums are not."""
    sums = HEADS["slda"].new_sums(2)
    HEADS["slda"].update(sums, torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0]), ["ash"])
    assert sums.counts.tolist() == [2] and sums.means.flatten().tolist() == [2.0, 0.0]


def test_slda_does_not_depend_on_the_scale_of_features():
    plain = fitted(HEADS["slda"]).logits(FEATURES)
    torch.testing.assert_close(
        fitted(HEADS["slda"], 1e-4 * FEATURES).logits(1e-4 * FEATURES), plain, rtol=1e-4, atol=1e-4
    )


def test_ridge_by_hand():
    x, y = FEATURES.double(), nn.functional.one_hot(LABELS, 3).double()
    scale = x.square().sum() / 6
    weight = torch.linalg.solve(x.T @ x + 0.25 * scale * torch.eye(6, dtype=torch.float64), x.T @ y)
    logits = fitted(Ridge(Ridge.Settings(penalty=0.25))).for_classes(NAMES).logits(FEATURES)
    torch.testing.assert_close(logits.double(), x @ weight, rtol=1e-5, atol=1e-6)


def test_squared_error_from_sums_alone():
    head = HEADS["ridge"]
    train, held_out = head.new_sums(6), head.new_sums(6)
    head.update(train, FEATURES[:40], LABELS[:40], NAMES)
    rows = LABELS[40:] != 1  # the held-out images lack a class
    head.update(held_out, FEATURES[40:][rows], LABELS[40:][rows], NAMES)
    weight = ridge(train, 0.1)
    targets = torch.stack([(LABELS[40:][rows] == NAMES.index(name)).double() for name in train.classes], dim=1)
    plain = (FEATURES[40:][rows].double() @ weight - targets).square().sum(1).mean().item()
    assert squared_error(weight, train.classes, held_out) == pytest.approx(plain)
    with pytest.raises(ContinualError, match="have classes that the head does not: elm"):
        squared_error(weight[:, :1], ("ash", "oak"), held_out)
    with pytest.raises(ContinualError, match="at least one held-out image"):
        squared_error(weight, train.classes, head.new_sums(6))


@pytest.mark.parametrize("kind", [Ridge, RandomRidge])
def test_the_penalty_is_chosen_by_held_out_images(kind):
    random = torch.Generator().manual_seed(1)
    features = torch.cat([FEATURES, torch.rand(60, 40, generator=random)], dim=1)  # most features are noise
    small = {} if kind is Ridge else {"width": 80}
    scores = {}
    for choose, argument in (("held_out", "held_out"), ("held_out_mse", "held_out_sums")):
        head = kind(kind.Settings(choose=choose, **small))
        train, held_out = head.new_sums(46), head.new_sums(46)
        head.update(train, features[:30], LABELS[:30], NAMES)
        head.update(held_out, features[30:], LABELS[30:], NAMES)
        images = LabeledFeatures(features[30:], LABELS[30:], tuple(NAMES))
        weight = head.fit(train, images, held_out).tensors()["weight"]
        each = {}
        for penalty in PENALTIES:
            other = kind(kind.Settings(penalty=penalty, **small)).fit(train)
            if choose == "held_out":
                predicted = other.for_classes(NAMES).logits(features[30:]).argmax(1)
                each[penalty] = (predicted == LABELS[30:]).float().mean().item()
            else:
                each[penalty] = -squared_error(ridge(train, penalty), train.classes, held_out)
            if torch.equal(weight, other.tensors()["weight"]):
                scores[choose] = penalty
        assert scores[choose] == head.chosen_penalty(train, images, held_out)
        best = max(each.values())
        assert scores[choose] == max(penalty for penalty in PENALTIES if each[penalty] == best)
        assert best > each[PENALTIES[0]]
        with pytest.raises(ContinualError, match=rf"held-out images, and there are none \({argument}\)"):
            head.fit(train)


def test_held_out_accuracy_is_among_all_classes_of_the_head():
    head = fitted(HEADS["ncm"])
    logits = head.for_classes(NAMES).logits(FEATURES)
    ash = LABELS == 1  # held-out images of the latest task only
    images = LabeledFeatures(FEATURES[ash], torch.zeros(int(ash.sum()), dtype=torch.int64), ("ash",))
    assert accuracy(head, images) == pytest.approx((logits[ash].argmax(1) == 1).double().mean().item())
    assert accuracy(head, images) < 1
    with pytest.raises(ContinualError, match="no held-out image has a label"):
        accuracy(head, LabeledFeatures(FEATURES, torch.full((60,), -1), tuple(NAMES)))


def test_a_penalty_that_is_given_and_chosen_is_refused():
    with pytest.raises(ValueError, match="leave out penalty or choose"):
        Ridge.Settings(penalty=1.0, choose="held_out")


def test_random_features_follow_from_the_seed_alone():
    head = HEADS["random_ridge"]
    again = RandomRidge(RandomRidge.Settings(width=20))
    other = RandomRidge(RandomRidge.Settings(width=20, seed=1))
    assert torch.equal(head.map(FEATURES), again.map(FEATURES)) and head.sums_key == again.sums_key
    assert not torch.equal(head.map(FEATURES), other.map(FEATURES)) and head.sums_key != other.sums_key
    hidden = head.map(FEATURES)
    assert hidden.shape == (60, 20) and (hidden >= 0).all() and 0.3 < (hidden == 0).double().mean() < 0.7


def test_fecam_by_hand():
    x = FEATURES.double().sqrt()
    columns = []
    for label in range(3):
        rows = x[label == LABELS]
        covariance = torch.cov(rows.T, correction=0)
        off = (covariance.sum() - covariance.trace()) / 30
        shrunk = covariance.clone()
        for i in range(6):
            for j in range(6):
                shrunk[i, j] += 2 * covariance.trace() / 6 if i == j else 0.5 * off
        std = shrunk.diagonal().sqrt()
        inverse = (shrunk / std[:, None] / std).inverse()
        rest = nn.functional.normalize(x, dim=1) - nn.functional.normalize(rows.mean(0), dim=0)
        columns.append(-torch.stack([r @ inverse @ r for r in rest]))
    logits = fitted(FeCAM(FeCAM.Settings(shrinkage=(2.0, 0.5)))).for_classes(NAMES).logits(FEATURES)
    torch.testing.assert_close(logits.double(), torch.stack(columns, dim=1), rtol=1e-5, atol=1e-5)


def test_fecam_refuses_features_that_have_no_power():
    with pytest.raises(ContinualError, match=r"power 0\.5 needs features that are not negative, and one is -2; set"):
        HEADS["fecam"].map(torch.tensor([[1.0, -2.0]]))
    with pytest.raises(ValueError, match="expected γ₁ > 0 and 0 ≤ γ₂ ≤ γ₁"):
        FeCAM.Settings(shrinkage=(0.0, 0.0))


def test_bytes_that_are_served_and_kept():
    served = {name: fitted(head).served_bytes for name, head in HEADS.items()}
    assert served["ncm"] == served["slda"] == served["ridge"] == 4 * 3 * 7
    assert served["random_ridge"] == 4 * 3 * 20
    assert (served["fecam"], served["fecam_common"]) == (4 * (18 + 3 * 36), 4 * (18 + 36))
    kept = HeadSums(list(HEADS.values()), 6)
    kept.add(FEATURES, LABELS, NAMES)
    plain, random, by_class = 8 * (3 + 18 + 36), 8 * (3 + 60 + 400), 8 * (3 + 18 + 3 * 36)
    assert kept.kept_bytes == plain + random + by_class  # five of the seven heads read the same sums
    alone = HeadSums([HEADS["ncm"]], 6)
    alone.add(FEATURES, LABELS, NAMES)
    assert alone.kept_bytes == 8 * (3 + 18)


def test_shared_sums_fit_every_head_and_come_back_from_files(tmp_path):
    kept = HeadSums(list(HEADS.values()), 6)
    kept.add(FEATURES, LABELS, NAMES)
    kept.save(tmp_path)
    again = HeadSums(list(reversed(HEADS.values())), 6)
    again.load(tmp_path)
    for head in HEADS.values():
        logits = head.fit(kept.of(head)).logits(FEATURES)
        assert torch.equal(logits, head.fit(again.of(head)).logits(FEATURES))
        torch.testing.assert_close(logits, fitted(head).logits(FEATURES))
    with pytest.raises(ContinualError, match="of width 6 with moments 'common', expected width 5"):
        HeadSums([HEADS["slda"]], 5).load(tmp_path)


def test_sums_of_other_moments_are_refused():
    sums = HEADS["ncm"].new_sums(6)
    HEADS["ncm"].update(sums, FEATURES, LABELS, NAMES)
    with pytest.raises(ContinualError, match="slda needs sums with moments 'common', not 'none'"):
        HEADS["slda"].fit(sums)


@pytest.mark.parametrize("classes", [3, 5])
def test_folds_into_the_classifier_of_a_timm_model(classes):
    torch.manual_seed(0)
    model = make_model("test_resnet", None, num_classes=classes).eval()
    images = torch.rand(2, 3, 32, 32)
    images[1] = 1 - images[1] ** 4  # far from the first, so that the two features are
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        labels = torch.tensor([0, 1])
        head = fitted(HEADS["slda"], features, labels, NAMES).for_classes(NAMES)
        before = torch.random.get_rng_state()
        classifier = head.fold(model)
        assert torch.equal(before, torch.random.get_rng_state())
        assert classifier is model.get_classifier() and classifier.out_features == 3
        torch.testing.assert_close(model(images)[:, :2], head.logits(features)[:, :2], rtol=1e-4, atol=1e-4)
        assert torch.equal(model(images).argmax(1), labels)


@pytest.mark.parametrize("name", ["random_ridge", "fecam", "fecam_common"])
def test_a_head_that_is_not_linear_ships_as_the_classifier_of_a_timm_folder(name, tmp_path):
    torch.manual_seed(0)
    model = make_model("test_resnet", None, num_classes=5).eval()
    images = torch.rand(6, 3, 32, 32)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        head = HEADS[name]
        heads = fitted(head, features, torch.tensor([0, 0, 1, 1, 2, 2]), NAMES)
        network = as_network(model)
        assert serve_head(network, head, heads.tensors(), heads.classes)
        write_timm_folder(tmp_path, network.model, origin="random", labels=heads.classes)
        again = timm_with_own_models().create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        expected = heads.logits(features)
        torch.testing.assert_close(again(images), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
        assert torch.equal(again(images).argmax(1), expected.argmax(1))
        assert torch.equal(torch.cat([again(image[None]) for image in images]).argmax(1), expected.argmax(1))
    assert closed_form(network.model).settings.items() <= {**head.settings.model_dump(), **again_sizes(again)}.items()
    assert "random" not in "".join(again.state_dict()), "it follows from the seed"
    with pytest.raises(NetworkError, match="no classifier that is one linear layer"):
        give_head(again, torch.nn.Identity(), 3)


def again_sizes(network):
    return network.get_classifier().settings


@pytest.mark.parametrize(
    "heads, error",
    [
        ([{"type": "ridge"}, {"type": "ridge", "penalty": 1}], r"heads\.1\.name: 'ridge' is the name of heads\.0 too"),
        ([{"type": "slda", "name": "ncm"}, {"type": "ncm"}], r"heads\.1\.name: 'ncm' is the name of heads\.0 too"),
        ([{"type": "ridge", "name": "student"}], r"heads\.0\.name: 'student' is the name of a learner or control"),
        ([{"type": "ridge", "name": "a/b"}], r"heads\.0\.name: 'a/b' .* has / or \+"),
    ],
)
def test_heads_need_different_names(heads, error, tmp_path):
    with pytest.raises(ConfigError, match=error):
        validate_tree(stream_tree(tmp_path, heads=heads), "stream")
    with pytest.raises(ConfigError, match=r"inference\.1\.type: ncm is inference\.0 too"):
        validate_tree(stream_tree(tmp_path, inference=[{"type": "ncm"}, {"type": "ncm"}]), "stream")


def test_folding_is_refused_where_it_cannot_be_exact():
    model = make_model("test_resnet", None, num_classes=3)
    with pytest.raises(ContinualError, match=r"features of width 6, the classifier of \d+"):
        fitted(HEADS["ncm"]).fold(model)
    head = LinearHead(NAMES, torch.zeros(3, model.num_features), torch.zeros(3))
    nn.utils.parametrize.register_parametrization(model.get_classifier(), "weight", nn.Identity())
    with pytest.raises(ContinualError, match="has a delta"):
        head.fold(model)
    model.reset_classifier(0)
    with pytest.raises(ContinualError, match="one linear layer with a bias"):
        head.fold(model)
