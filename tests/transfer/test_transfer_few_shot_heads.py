"""Few-shot heads: hand-computed and reference values, folding, uneven shots; episodes: draws that repeat, intervals."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distill.continual.heads.base import Head
from distill.continual.heads.ncm import NearestClassMean
from distill.continual.heads.ridge import Ridge
from distill.transfer.few_shot import logistic
from distill.transfer.few_shot.base import FewShotError, FewShotHead
from distill.transfer.few_shot.episodes import choose_classes, draw_episodes, episode_accuracies, interval
from distill.transfer.few_shot.logistic import Logistic
from distill.transfer.few_shot.lp_plus import LpPlus
from distill.transfer.few_shot.prototype import Prototype
from distill.transfer.few_shot.ridge import FewShotRidge
from distill.transfer.few_shot.settings import EpisodeSettings

NAMES = ("ash", "elm", "oak")
HEADS: tuple[FewShotHead, ...] = (
    Prototype(Prototype.Settings()),
    FewShotRidge(FewShotRidge.Settings()),
    FewShotRidge(FewShotRidge.Settings(bias=True)),
    Logistic(Logistic.Settings()),
    LpPlus(LpPlus.Settings(steps=30)),
)


def uneven(width: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Nine features of three classes, of which one has a single image."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 2, 2, 2])
    return torch.randn(9, width, generator=generator) + 3 * torch.eye(width)[labels], labels


def of_sums(head: Head, features: Tensor, labels: Tensor) -> Tensor:
    sums = head.new_sums(features.shape[1])
    head.update(sums, features, labels, NAMES)
    return head.fit(sums).for_classes(NAMES).logits(features)


@pytest.mark.parametrize("width", [6, 40], ids=["more images than features", "fewer"])
def test_prototype_and_ridge_are_the_heads_of_a_stream(width: int) -> None:
    features, labels = uneven(width)
    own = HEADS[0].fit(features, labels, NAMES).logits(features)
    torch.testing.assert_close(own, of_sums(NearestClassMean(NearestClassMean.Settings()), features, labels))
    penalty = 0.7
    same = Ridge(Ridge.Settings(penalty=penalty * width / len(features)))
    made = FewShotRidge(FewShotRidge.Settings(penalty=penalty)).fit(features, labels, NAMES)
    torch.testing.assert_close(made.logits(features), of_sums(same, features, labels))


def test_ridge_with_a_bias_by_the_normal_equations() -> None:
    features, labels = (each.double() for each in uneven())
    x = torch.cat([features, torch.ones(9, 1)], dim=1)
    y = torch.nn.functional.one_hot(labels.long(), 3).double()
    centered = features - features.mean(0)
    penalty = 0.5 * centered.square().sum() / 9 * torch.eye(13).double()
    penalty[-1, -1] = 0
    expected = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
    made = HEADS[2].fit(features, labels.long(), NAMES)
    torch.testing.assert_close(made.weight, expected[:-1].T)
    torch.testing.assert_close(made.bias, expected[-1])


@pytest.mark.parametrize("width", [5, 40])
def test_logistic_regression_is_that_of_scikit_learn(width: int) -> None:
    from sklearn.linear_model import LogisticRegression

    features, labels = uneven(width)
    scale = (features - features.mean(0)).square().sum().item() / 9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = LogisticRegression(C=1 / (0.1 * scale), tol=1e-10, max_iter=10_000).fit(features, labels)
    made = HEADS[3].fit(features, labels, NAMES)
    expected = torch.from_numpy(reference.decision_function(features.numpy()))
    own = made.scores(features.double())
    torch.testing.assert_close(own - own.mean(1, keepdim=True), expected, rtol=1e-3, atol=1e-3)


def test_fits_that_do_not_converge_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = uneven()
    head = Logistic(Logistic.Settings())
    head.fit(features, labels, NAMES)
    assert head.unsolved == 0
    monkeypatch.setattr(logistic, "STEPS", 2)
    head.weights(torch.stack([features, features, torch.zeros_like(features)]), labels.expand(3, -1), 3)
    assert 2 <= head.unsolved <= 3, "the first two at least"


@pytest.mark.parametrize("text", [False, True])
def test_lp_plus_by_autograd(text: bool) -> None:
    """A plain reference, with gradients of autograd that are set to zero at each step."""
    features, labels = (each.double() for each in uneven(30))
    labels = labels.long()
    embeddings = torch.randn(3, 30, generator=torch.Generator().manual_seed(1)).double()
    norm = features.norm(dim=1).mean()
    f, t = features / norm, torch.nn.functional.normalize(embeddings, dim=1)
    means = torch.stack([f[labels == k].mean(0) for k in range(3)])
    w = means.clone().requires_grad_()
    alpha = (250 * (means @ t.T).mean()).repeat(3).requires_grad_() if text else torch.zeros(3).double()
    velocity, step = torch.zeros_like(w), 4 * 9 / torch.linalg.eigvalsh(f.T @ f)[-1]
    for number in range(1, 31):
        w.grad = alpha.grad = None
        torch.nn.functional.cross_entropy(f @ w.T + alpha * (f @ t.T), labels).backward()
        velocity = 0.9 * velocity + w.grad
        with torch.no_grad():
            w -= step * velocity
            if text and number % 10 == 0:
                alpha -= 9 / (4 * (f @ t.T).square().sum(0).max()) * alpha.grad
    expected = (w + alpha[:, None] * t).detach() / norm
    given = dict(zip(NAMES, embeddings)) if text else None
    made = LpPlus(LpPlus.Settings(steps=30)).fit(features, labels, NAMES, given)
    torch.testing.assert_close(made.weight, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.settings.type)
def test_heads_separate_and_depend_on_no_other_episode(head: FewShotHead) -> None:
    features, labels = uneven()
    other, _ = uneven(seed=5)
    made = head.fit(features, labels, NAMES)
    assert made.logits(features).argmax(1).tolist() == labels.tolist()
    weight, bias = head.weights(torch.stack([other, features]), labels.expand(2, -1), 3)
    torch.testing.assert_close(weight[1], made.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(bias[1], made.bias, rtol=1e-3, atol=1e-4)
    one_shot = head.fit(features[[0, 5, 6]], labels[[0, 5, 6]], NAMES)
    assert one_shot.logits(features[[0, 5, 6]]).argmax(1).tolist() == [0, 1, 2], "one image of each class"
    zero = head.fit(torch.zeros(3, 4), torch.arange(3), NAMES)
    assert zero.weight.isfinite().all() and zero.bias.isfinite().all(), "constant features"
    with pytest.raises(FewShotError, match="two classes or more"):
        head.fit(features[:1], labels[:1], NAMES[:1])
    with pytest.raises(FewShotError, match="no labeled training image of 'elm'"):
        head.fit(features, torch.where(labels == 1, -1, labels), NAMES)


def test_texts_of_another_space_are_refused() -> None:
    features, labels = uneven()
    head = LpPlus(LpPlus.Settings(text=Path("texts.safetensors")))
    with pytest.raises(FewShotError, match="no text embedding of 'oak'"):
        head.fit(features, labels, NAMES, {"ash": torch.ones(12), "elm": torch.ones(12)})
    with pytest.raises(FewShotError, match="of width 3, features of 12"):
        head.fit(features, labels, NAMES, dict.fromkeys(NAMES, torch.ones(3)))


SETTINGS = EpisodeSettings(ways=3, shots=(1, 2), queries=3, episodes=40)


def split(classes: int = 6, images: int = 7) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    labels = torch.arange(classes).repeat(images)
    ids = torch.randperm(classes * images, generator=torch.Generator().manual_seed(0))
    return labels, ids, tuple("abcdefghij"[:classes])


def test_draws_repeat_whatever_the_order_of_the_images() -> None:
    labels, ids, names = split()
    made = draw_episodes(labels, ids, names, SETTINGS, seed=3)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(1))
    again = draw_episodes(labels[order], ids[order], names, SETTINGS, seed=3)
    for rows, own in ((made.support, again.support), (made.queries, again.queries)):
        assert torch.equal(ids[rows], ids[order][own])
    assert not torch.equal(made.support, draw_episodes(labels, ids, names, SETTINGS, seed=4).support)
    later = draw_episodes(labels, ids, names, SETTINGS.model_copy(update={"episodes": 5}), 3, first=35)
    assert torch.equal(later.support, made.support[35:]), "what an episode draws depends on its number alone"
    images = torch.cat([made.support, made.queries], dim=2).flatten(1)
    assert all(len(set(own)) == 15 for own in images.tolist()), "no image twice in an episode"
    assert torch.equal(labels[made.support], made.classes[..., None].expand_as(made.support))
    assert torch.equal(labels[made.queries], made.classes[..., None].expand_as(made.queries))
    counts = made.classes.flatten().bincount(minlength=6)
    assert counts.min() > 10 and len(made) == 40, "classes come about as often"


def test_classes_with_too_few_images_are_left_out_or_refused() -> None:
    labels, ids, names = split()
    few = labels.clone()
    few[(labels == 2).nonzero()[:3, 0]] = -1
    made = draw_episodes(few, ids, names, SETTINGS, 0)
    assert made.left_out == ("c",) and not (made.classes == 2).any()
    with pytest.raises(FewShotError, match=r"0 of 6 classes have the 12 labeled images .* \(the largest has 7\)"):
        draw_episodes(labels, ids, names, SETTINGS.model_copy(update={"queries": 10}), 0)
    with pytest.raises(FewShotError, match=r"8 labeled images that 8 shots take .* lower shots or ways"):
        draw_episodes(labels, ids, names, SETTINGS.model_copy(update={"shots": (8,), "queries": 0}), 0)
    all_of_them = draw_episodes(labels, ids, names, SETTINGS.model_copy(update={"shots": (7,), "queries": 0}), 0)
    assert all_of_them.queries.numel() == 0 and all_of_them.support.shape == (40, 3, 7)
    with pytest.raises(FewShotError, match=r"2 of 2 classes have the 5 .* ways: 3"):
        draw_episodes(labels, ids, names, SETTINGS, 0, among=("a", "b"))
    chosen = choose_classes(names, EpisodeSettings(ways=2, classes=4), 0)
    assert len(chosen) == 4 and chosen == choose_classes(names, EpisodeSettings(ways=2, classes=4), 0)
    assert {choose_classes(names, EpisodeSettings(ways=2, classes=4), seed) for seed in range(9)} != {chosen}
    with pytest.raises(FewShotError, match="no class 'x'"):
        choose_classes(names, EpisodeSettings(ways=2, classes=("a", "x")), 0)
    with pytest.raises(FewShotError, match="7, and the data has 6"):
        choose_classes(names, EpisodeSettings(ways=2, classes=7), 0)


def test_accuracies_are_those_of_the_head_in_each_episode() -> None:
    labels, ids, names = split()
    features = torch.randn(42, 9, generator=torch.Generator().manual_seed(0)) + 1.5 * torch.eye(9)[labels]
    episodes = draw_episodes(labels, ids, names, SETTINGS, 0)
    head = HEADS[1]
    made = episode_accuracies(head, features, episodes, 2)
    for number in (0, 39):
        support, queries = episodes.support[number], episodes.queries[number]
        ways = [names[k] for k in episodes.classes[number].tolist()]
        fitted = head.fit(features[support.flatten()], torch.arange(3).repeat_interleave(2), ways)
        right = fitted.logits(features[queries.flatten()]).argmax(1) == torch.arange(3).repeat_interleave(3)
        assert made[number] == right.double().mean()
    estimate = interval(torch.tensor([0.2, 0.4, 0.6, 0.8]).double())
    half = 1.96 * (0.2 / 3) ** 0.5 / 2
    assert estimate.value == pytest.approx(0.5) and estimate.high == pytest.approx(0.5 + half)
    assert estimate.low == pytest.approx(0.5 - half)
