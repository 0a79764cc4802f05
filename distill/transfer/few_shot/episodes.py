"""Episodes of cached features: keyed draws, and the accuracy of a head over many of them with its 95 % interval.

Shape suffixes: N images, D feature width, E episodes, K ways, S support images and Q queries of a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from augment.draws import Draws, sample_key
from distill.report.items import Estimate
from distill.transfer.few_shot.base import FewShotError, FewShotHead
from distill.transfer.few_shot.settings import EpisodeSettings

CHUNK = 100
"""Episodes whose heads are fitted at once."""


@dataclass(frozen=True)
class Episodes:
    """Episodes of one set of images.

    Args:
        classes: [E, K] indices of their classes.
        support: [E, K, S] rows of the support images.
        queries: [E, K, Q] rows of the queries.
        left_out: names of the classes with too few images.
    """

    classes: Tensor
    support: Tensor
    queries: Tensor
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.classes)


def choose_classes(classes: Sequence[str], settings: EpisodeSettings, seed: int) -> tuple[str, ...]:
    """Names of the classes that episodes are drawn from.

    Args:
        classes: of the data.
        settings: names them, or their number.
        seed: of the run, which chooses them if there is a number.

    Returns:
        The names, in the order of ``classes``.

    Raises:
        FewShotError: a class that the data lacks, or fewer classes than that.
    """
    wanted = settings.classes
    if wanted is None:
        return tuple(classes)
    if isinstance(wanted, int):
        if wanted > len(classes):
            raise FewShotError(f"episodes.classes: {wanted}, and the data has {len(classes)} classes")
        keys = torch.tensor([sample_key(name) for name in classes])
        order = Draws(seed, 0, "episodes", keys).op("chosen classes").bits(0).argsort(stable=True)
        wanted = tuple(classes[row] for row in order[:wanted].tolist())
    if unknown := [name for name in wanted if name not in classes]:
        raise FewShotError(f"episodes.classes: the data has no class {unknown[0]!r}")
    return tuple(name for name in classes if name in set(wanted))


def draw_episodes(
    labels_N: Tensor,
    ids_N: Tensor,
    classes: Sequence[str],
    settings: EpisodeSettings,
    seed: int,
    among: Sequence[str] | None = None,
    first: int = 0,
) -> Episodes:
    """Draw episodes from the images of a split.

    Args:
        labels_N: int64 indices into ``classes``; negative: no label.
        ids_N: int64 ids of the images; no draw depends on their order.
        classes: names.
        settings: ways, shots, queries and their number.
        seed: of the run.
        among: names of the classes to draw from; None: all.
        first: number of the first episode; what an episode draws depends on its own number alone.

    Returns:
        The episodes. Classes with fewer images than shots and queries take are left out, and named.

    Raises:
        FewShotError: fewer classes with enough images than ``ways``.
    """
    need = max(settings.shots) + settings.queries
    wanted = [name for name in classes if among is None or name in set(among)]
    counts = {name: int((labels_N == classes.index(name)).sum()) for name in wanted}
    enough = [name for name in wanted if counts[name] >= need]
    if len(enough) < settings.ways:
        most = max(counts.values(), default=0)
        taken, remedy = f"{max(settings.shots)} shots", "lower shots or ways"
        if settings.queries:
            taken, remedy = f"{taken} and {settings.queries} queries", "lower shots, queries or ways"
        raise FewShotError(
            f"episodes: {len(enough)} of {len(wanted)} classes have the {need} labeled images that {taken} take (the "
            f"largest has {most}), and an episode has ways: {settings.ways}; {remedy}, or draw from another split"
        )
    numbers = torch.arange(first, first + settings.episodes)
    draws = Draws(seed, 0, "episodes", numbers)
    # Each episode orders the classes by a number that is keyed by the class's name.
    order_EC = torch.stack([draws.op(f"class {name}").bits(0) for name in enough], dim=1).argsort(dim=1, stable=True)
    chosen_EK = order_EC[:, : settings.ways]
    rows_ECI = torch.zeros(len(numbers), len(enough), need, dtype=torch.int64)
    for column, name in enumerate(enough):
        own = (labels_N == classes.index(name)).nonzero()[:, 0]
        own = own[ids_N[own].argsort()]
        episodes = (chosen_EK == column).any(1)
        places = draws.of(numbers[episodes]).op(f"images of {name}").permutation(0, len(own))[:, :need]
        rows_ECI[episodes, column] = own[places]
    rows_EKI = rows_ECI.gather(1, chosen_EK[..., None].expand(-1, -1, need))
    support_EKS, queries_EKQ = rows_EKI.split([max(settings.shots), settings.queries], dim=2)
    index_C = torch.tensor([classes.index(name) for name in enough])
    left_out = tuple(name for name in wanted if name not in set(enough))
    return Episodes(index_C[chosen_EK], support_EKS, queries_EKQ, left_out)


@torch.no_grad()
def episode_accuracies(
    head: FewShotHead,
    features_ND: Tensor,
    episodes: Episodes,
    shots: int,
    text: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """Accuracy of a head in each episode.

    Args:
        head: that is fitted to the support of each episode.
        features_ND: of the images that the episodes were drawn from.
        episodes: of these images.
        shots: support images of each class, the first ones.
        text: index of a class → its embedding [D]; None: none.

    Returns:
        [E] float64, fractions of the K·Q queries.
    """
    ways = episodes.classes.shape[1]
    labels_S = torch.arange(ways).repeat_interleave(shots)
    labels_Q = torch.arange(ways).repeat_interleave(episodes.queries.shape[2])
    made = []
    for rows in torch.arange(len(episodes)).split(CHUNK):
        support_ESD = features_ND[episodes.support[rows, :, :shots].flatten(1)]
        text_EKD = None
        if text is not None and head.reads_text:
            text_EKD = torch.stack(
                [torch.stack([text[index] for index in own]) for own in episodes.classes[rows].tolist()]
            )
        weight_EKD, bias_EK = head.weights(support_ESD, labels_S.expand(len(rows), -1), ways, text_EKD)
        queries_EQD = features_ND[episodes.queries[rows].flatten(1)].double()
        logits_EQK = queries_EQD @ weight_EKD.mT + bias_EK[:, None]
        made.append((logits_EQK.argmax(2) == labels_Q).double().mean(1))
    return torch.cat(made)


def interval(values_E: Tensor) -> Estimate:
    """Mean of values of independent episodes, with the 95 % interval ``mean ± 1.96 s/√E`` (s unbiased)."""
    mean = values_E.mean().item()
    half = 1.96 * values_E.std().item() / len(values_E) ** 0.5
    return Estimate(value=mean, low=mean - half, high=mean + half)
