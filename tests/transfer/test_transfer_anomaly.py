"""Anomaly detection and clusters as pure functions: by hand, against a plain reference, and their files."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distill.export.checksummed import ExportError
from distill.export.manifest import Preprocessing
from distill.models.features import Features
from distill.models.network import create_network
from distill.models.settings import NetworkSettings
from distill.transfer.anomaly.base import AnomalyError
from distill.transfer.anomaly.files import AnomalyDetector, load_anomaly, save_anomaly
from distill.transfer.anomaly.mahalanobis import Mahalanobis
from distill.transfer.anomaly.patchcore import PatchCore, blurred, coreset
from distill.transfer.anomaly.threshold import AnomalyScores, least_rate, threshold
from distill.transfer.clusters import agreement, assign, k_means


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_mahalanobis_is_the_distance_under_the_shrunk_covariance() -> None:
    from sklearn.covariance import ledoit_wolf

    x, other = random(12, 5) @ random(5, 5, seed=1), random(3, 5, seed=2)
    method = Mahalanobis(Mahalanobis.Settings())
    state = method.fit([Features(pooled=x[:7]), Features(pooled=x[7:])], seed=0)
    covariance, _ = ledoit_wolf(x.double().numpy())
    apart = other.double() - x.double().mean(0)
    expected = (apart @ torch.linalg.inv(torch.from_numpy(covariance)) * apart).sum(1)
    scores, heat = method.score(Features(pooled=other), state, (8, 8))
    assert heat is None
    torch.testing.assert_close(scores.double(), expected, rtol=1e-3, atol=1e-3)
    fewer = Mahalanobis(Mahalanobis.Settings(directions=2)).fit([Features(pooled=x)], seed=0)
    assert fewer["directions"].shape == (2, 5) and fewer["directions"].numel() < state["directions"].numel()
    with pytest.raises(AnomalyError, match="mahalanobis needs two normal images or more, not 1"):
        method.fit([Features(pooled=x[:1])], seed=0)
    same = method.fit([Features(pooled=torch.zeros(4, 5))], seed=0)
    assert (method.score(Features(pooled=torch.eye(5)[:2]), same, (8, 8))[0] > 1e9).all()
    assert not method.score(Features(pooled=torch.zeros(2, 5)), same, (8, 8))[0].any()


def features(images: int, seed: int = 0) -> Features:
    sides = {"first": 16, "second": 8, "third": 4, "fourth": 2}
    return Features(maps={name: random(images, 3, side, side, seed=seed + side) for name, side in sides.items()})


def test_patchcore_is_the_distance_to_the_nearest_patch() -> None:
    method = PatchCore(PatchCore.Settings(bank="1MB", candidates=1000))
    normal, other = features(4), features(2, seed=9)
    state = method.fit([normal], seed=0)
    assert state["bank"].shape == (4 * 64, 6) and state["bank"].dtype == torch.float16, "all patches fit"

    def patches(output: Features) -> torch.Tensor:
        maps = [F.avg_pool2d(output.maps[name], 3, 1, 1) for name in ("second", "third")]
        maps[1] = F.interpolate(maps[1], (8, 8), mode="bilinear", align_corners=False)
        return torch.cat(maps, 1).flatten(2).movedim(1, 2)

    bank = patches(normal).flatten(0, 1).half().float()
    scores, heat = method.score(other, state, (32, 32))
    assert heat is not None and heat.shape == (2, 32, 32)
    for row, own in enumerate(patches(other)):
        distance = torch.cdist(own, bank)
        worst = int(distance.min(1).values.argmax())
        place = int(distance[worst].argmin())
        around = torch.cdist(bank[place][None], bank)[0].argsort()[:9]
        near = (own[worst] - bank[around]).norm(dim=1)
        weight = 1 - math.exp(distance[worst, place]) / near.exp().sum()
        assert float(scores[row]) == pytest.approx(float(distance[worst, place] * weight), rel=1e-4)
    itself, _ = method.score(normal, state, (32, 32))
    assert (itself < 0.05 * scores.min()).all()


def test_the_bank_keeps_its_bytes_and_is_a_greedy_cover() -> None:
    method = PatchCore(PatchCore.Settings(bank=1000, candidates=150))
    state = method.fit([features(3), features(3, seed=1)], seed=0)
    assert state["bank"].numel() * state["bank"].element_size() <= 1000 and len(state["bank"]) == 1000 // 12
    again = method.fit([features(3), features(3, seed=1)], seed=0)
    assert torch.equal(state["bank"], again["bank"])
    points = torch.tensor([[0.0], [0.1], [10.0], [10.1], [5.0]])
    chosen = coreset(points, 3, torch.Generator().manual_seed(0)).tolist()
    assert {round(float(points[index, 0])) for index in chosen} == {0, 5, 10}
    assert sorted(coreset(points, 5, torch.Generator().manual_seed(0)).tolist()) == [0, 1, 2, 3, 4]
    with pytest.raises(AnomalyError, match=r"patchcore in anomaly\.methods: stages: there is no stage fifth, only"):
        PatchCore(PatchCore.Settings(stages=("fifth",))).fit([features(1)], seed=0)
    with pytest.raises(AnomalyError, match=r"bank: 11: a patch of 6 numbers takes 12 bytes"):
        PatchCore(PatchCore.Settings(bank=11)).fit([features(1)], seed=0)
    with pytest.raises(ValueError, match="expected bytes such as 200KB"):
        PatchCore.Settings(bank="2 bananas")


def test_a_blur_keeps_the_mean_of_a_constant_and_spreads_a_point() -> None:
    assert torch.allclose(blurred(torch.ones(1, 1, 20, 20)), torch.ones(1, 1, 20, 20), atol=1e-6)
    point = torch.zeros(1, 1, 41, 41)
    point[0, 0, 20, 20] = 1
    spread = blurred(point)[0, 0]
    assert float(spread[20, 24] / spread[20, 20]) == pytest.approx(math.exp(-0.5), rel=1e-4)


def test_the_threshold_is_the_conformal_quantile() -> None:
    scores = torch.arange(1.0, 20.0)  # 1 … 19
    assert threshold(scores, 0.1) == 18 and threshold(scores, 0.05) == 19 and threshold(scores, 0.01) == 19
    assert least_rate(19) == 0.05
    normal = np.array([True, True, False, False])
    made = AnomalyScores.of(torch.tensor([0.1, 0.4, 0.3, 0.9]), normal, 0.35)
    assert (made.auroc, made.false_alarms, made.detected) == (0.75, 0.5, 0.5)
    normals = AnomalyScores.of(torch.tensor([0.1, 0.4]), np.array([True, True]), 0.35)
    assert (normals.auroc, normals.false_alarms, normals.detected) == (None, 0.5, None)


def test_a_detector_is_read_for_its_network_alone(tmp_path: Path) -> None:
    made, other = (create_network(NetworkSettings(model="test_resnet", pretrained=False, size=32), 0) for _ in range(2))
    images = random(3, 3, 32, 32)
    for settings in (Mahalanobis.Settings(), PatchCore.Settings()):
        method = settings.component(settings)  # type: ignore[misc]
        detector = AnomalyDetector(made.model, method, {}, 1.5, (32, 32))  # type: ignore[arg-type]
        from distill.models.network import extract

        with torch.no_grad():
            detector.state = method.fit([extract(made.model, images, method.needs)], seed=0)  # type: ignore[attr-defined]
        folder = tmp_path / settings.type
        about = {"false_alarms": 0.01, "normal_images": 3, "held_out": 2}
        save_anomaly(folder, detector, Preprocessing.of(made.model, (32, 32)), **about)
        again = load_anomaly(folder, made.model)
        assert again.threshold == 1.5 and torch.equal(again(images)[0], detector(images)[0])
        assert f"method={settings.type}" in repr(again)
        with pytest.raises(ExportError, match="features of another network"):
            load_anomaly(folder, other.model)
        content = (folder / "anomaly.safetensors").read_bytes()
        (folder / "anomaly.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ExportError, match="damaged or replaced"):
            load_anomaly(folder, made.model)


def test_clusters_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    perfect = agreement(labels, np.array([4, 4, 4, 0, 0, 2]))
    assert (perfect.nmi, perfect.ari, perfect.accuracy) == pytest.approx((1, 1, 1))
    assert agreement(labels, np.zeros(6, dtype=int)).accuracy == 0.5, "one cluster is assigned to one class"
    assert agreement(labels, np.array([0, 0, 1, 1, 1, 1])).accuracy == pytest.approx(4 / 6)
    directions = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 3.0], [5.0, 0.0]])
    centers = k_means(directions, 2, seed=0)
    clusters = assign(directions, centers).tolist()
    assert clusters[0] == clusters[1] == clusters[4] != clusters[2] == clusters[3], "lengths do not matter"
    assert torch.equal(centers, k_means(directions, 2, seed=0))
    with pytest.raises(ValueError, match="6 clusters of 5 images"):
        k_means(directions, 6, seed=0)
