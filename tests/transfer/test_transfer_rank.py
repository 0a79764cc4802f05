"""Scores of networks against dense references, and the command that ranks networks."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from toy_training import experiment, network

from distill.commands.rank import rank
from distill.run.stage import StageError
from distill.transfer.rank import h_score, leep, logme, nearest_class_mean


def sample(images: int, width: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % 3
    return spread * torch.randn(images, width, generator=generator) + 2 * torch.eye(width)[labels], labels


def log_density(f: Tensor, y: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Log evidence per image by the definition: y ~ N(0, I/β + F Fᵀ/α)."""
    covariance = torch.eye(len(f)).double() / beta + f @ f.T / alpha
    return torch.distributions.MultivariateNormal(torch.zeros(len(f)).double(), covariance).log_prob(y) / len(f)


@pytest.mark.parametrize(("images", "width"), [(30, 5), (12, 20)], ids=["more images than features", "fewer"])
def test_logme_is_the_largest_evidence(images: int, width: int) -> None:
    """α and β by gradient ascent of the evidence, with dense matrices."""
    features, labels = sample(images, width)
    features = features.double()
    total = 0.0
    for k in range(3):
        y = (labels == k).double()
        logs = torch.zeros(2).double().requires_grad_()
        optimizer = torch.optim.LBFGS([logs], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

        def loss(y: Tensor = y, logs: Tensor = logs, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = -log_density(features, y, *logs.exp())
            value.backward()
            return value

        optimizer.step(loss)
        total += log_density(features, y, *logs.detach().exp()).item() / 3
    assert logme(features, labels, 3) == pytest.approx(total, abs=2e-4)


def test_a_class_without_images_changes_no_score() -> None:
    features, labels = sample(30, 5)
    for score in (logme, h_score, leep):
        assert score(features, labels, 4) == pytest.approx(score(features, labels, 3), rel=1e-9)


def test_h_score_by_the_definition() -> None:
    from sklearn.covariance import ledoit_wolf

    features, labels = sample(40, 6)
    f = (features - features.mean(0)).double()
    shrunk, shrinkage = ledoit_wolf(f.numpy())
    means = torch.stack([f[labels == k].mean(0) for k in range(3)])[labels]
    between = means.T @ means / 40
    expected = (1 - shrinkage) * torch.trace(torch.linalg.inv(torch.from_numpy(shrunk)) @ between)
    assert h_score(features, labels, 3) == pytest.approx(expected.item(), rel=1e-6)
    assert h_score(torch.ones(6, 4), torch.arange(6) % 3, 3) == 0


def test_leep_by_hand() -> None:
    """Two images of each class; the network's two classes are the classes, with 0.9, but for one image."""
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1]]).double()
    labels = torch.tensor([0, 0, 1, 1])
    given = torch.tensor([[1.8, 0.2], [1.0, 1.0]]) / torch.tensor([2.8, 1.2])  # P(y | z)
    likelihoods = [p[i] @ given[labels[i]].double() for i in range(4)]
    expected = sum(math.log(own) for own in likelihoods) / 4
    assert leep(p.log(), labels, 2) == pytest.approx(expected, rel=1e-6)
    assert leep(torch.zeros(4, 3), labels, 2) == pytest.approx(-math.log(2)), "a network that tells nothing"


def test_nearest_class_mean_by_hand() -> None:
    features = torch.tensor([[0.0, 0], [2, 0], [0, 9], [0, 8], [0.4, 0], [9, 9]])
    labels, held = torch.tensor([0, 1, 2, 2, 1, 3]), torch.tensor([0, 0, 0, 1, 1, 1]).bool()
    # of class 2 right, of class 1 nearer to 0, and class 3 has no mean, so it is not counted
    assert nearest_class_mean(features, labels, held, tuple("abcd")) == 0.5
    assert math.isnan(nearest_class_mean(features, labels, torch.zeros(6).bool(), tuple("abcd")))


def test_better_features_have_higher_scores() -> None:
    good, labels = sample(60, 8)
    noise = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    assert logme(good, labels, 3) > logme(noise, labels, 3)
    assert h_score(good, labels, 3) > h_score(noise, labels, 3)


@pytest.mark.parametrize("width", [80, 120])
def test_networks_are_ranked_and_unreadable_ones_named(width: int, tmp_path: Path) -> None:
    settings = experiment(tmp_path)
    names = [network(tmp_path, name)["model"] for name in ("test_resnet", "test_efficientnet")]
    text = io.StringIO()
    made = rank(
        settings,
        [names[0], "nonsense", names[1]],
        Console(file=text, width=width),
        by="ncm",
        images=20,
        as_json=False,
    )
    assert [own.error == "" for own in made] == [True, True, False]
    assert made[0].scores["ncm"] >= made[1].scores["ncm"] and made[0].seconds > 0
    shown = text.getvalue()
    assert max(map(len, shown.split("nonsense was left out")[0].splitlines())) <= width
    told = " ".join(shown.split())
    assert "Sorted by nearest mean" in told and "20 training images of 4 classes" in told
    assert "nonsense was left out: timm has no model 'nonsense'" in shown
    assert ("weights" in shown) == (width == 120)


def test_json_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = network(tmp_path, "test_resnet")["model"]
    names = [own, "nonsense", "embedded:nope"]
    rank(experiment(tmp_path), names, Console(quiet=True), by="logme", images=0, as_json=True)
    content = json.loads(capsys.readouterr().out)
    assert content["by"] == "logme" and content["images"] == 36
    assert set(content["networks"][0]["scores"]) == {"logme", "h_score", "leep", "ncm"}
    assert content["networks"][1]["error"].startswith("timm has no model")
    assert content["networks"][2]["error"].startswith("no embedded weights for 'nope'; known: ")
    arguments: dict[str, Any] = {"by": "logme", "images": 0, "as_json": False}
    with pytest.raises(StageError, match="none of the 1 networks"):
        rank(experiment(tmp_path), ["nonsense"], Console(quiet=True), **arguments)
    unlabeled = experiment(tmp_path, data={"labels_per_class": 0})
    with pytest.raises(StageError, match=r"data\.source: .* two classes or more; there are none with a label"):
        rank(unlabeled, [own], Console(quiet=True), **arguments)
