"""PatchCore: distance of every patch from a bank of patches of normal images.

Shape suffixes: B images, C channels, H W map size, P patches, M patches of the bank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor

from distill.deltas.rank_settings import check_bytes, parse_bytes
from distill.models.features import Features
from distill.transfer.anomaly.base import AnomalyError, AnomalyMethod

PROJECTED = 128
"""Dimensions of the random projection in which the bank is chosen."""
CHUNK = 4096
"""Patches that are compared with the bank at a time."""


class PatchCore(AnomalyMethod):
    """The score of a patch is its distance from the nearest patch of normal images, in features of middle stages.

    A patch is the mean of 3 × 3 positions of the stages' maps, which are resized to the grid of the shallowest and
    concatenated. The bank is a greedy coreset: the patch that is farthest from those chosen, in a random projection to
    128 dimensions, until it has as many as fit in ``bank`` bytes. An image's score is that of its worst patch p, times
    ``1 − exp(d(p, m)) / Σ_{n ∈ N₉(m)} exp(d(p, n))`` with the nearest patch m of the bank and its 9 nearest ones. The
    map is that of the patches, resized to the input and blurred with σ 4.

    Paper: Roth et al., CVPR 2022, arXiv 2106.08265. Deviations: the size of the bank is given in bytes and its
    patches are float16, so that it does not grow with the data; it is chosen from ``candidates`` patches at most,
    drawn at random from all images alike, so that neither memory nor time does.
    """

    class Settings(AnomalyMethod.Settings):
        type: Literal["patchcore"] = "patchcore"
        stages: tuple[str, ...] | None = Field(
            None,
            min_length=1,
            description="timm's names of the stages; default: the deepest of each of the two map sizes before the"
            " smallest (strides 8 and 16)",
        )
        bank: Annotated[str | int, AfterValidator(check_bytes)] = Field(
            "2MB", description="most bytes of the bank: 2MB, 500KB, or a number"
        )
        candidates: int = Field(20_000, ge=100, description="most patches that the bank is chosen from")
        neighbors: int = Field(9, ge=1, description="patches of the bank that weigh the score of an image")

    needs: ClassVar[frozenset[str]] = frozenset({"maps"})
    settings: Settings

    def fit(self, outputs: Iterable[Features], seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        pool: list[Tensor] = []
        for output in outputs:
            for patches_PC in self._patches(output).flatten(2).movedim(1, 2):  # [H·W, C] of each image
                pool.append(patches_PC)
            if sum(map(len, pool)) > 4 * self.settings.candidates:
                pool = [self._drawn(torch.cat(pool), generator, 2 * self.settings.candidates)]
        if not pool:
            raise AnomalyError("patchcore: there is no normal image")
        patches_PC = self._drawn(torch.cat(pool), generator, self.settings.candidates)
        of_patch = 2 * patches_PC.shape[1]
        size = min(parse_bytes(str(self.settings.bank)) // of_patch, len(patches_PC))
        if not size:
            text = f"{self.settings.bank}: a patch of {patches_PC.shape[1]} numbers takes {of_patch} bytes"
            raise AnomalyError(f"the method patchcore in anomaly.methods: bank: {text}")
        bank_MC = patches_PC[coreset(patches_PC, size, generator)] if size < len(patches_PC) else patches_PC
        return {"bank": bank_MC.half().contiguous()}

    def score(
        self, output: Features, state: Mapping[str, Tensor], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        bank_MC = state["bank"].float()
        map_BCHW = self._patches(output)
        images, _, height, width = map_BCHW.shape
        patches_PC = map_BCHW.movedim(1, -1).flatten(0, 2)
        distances, places = zip(*(torch.cdist(part, bank_MC).min(1) for part in patches_PC.split(CHUNK)))
        distance_BP = torch.cat(distances).view(images, -1)
        nearest_BP = torch.cat(places).view(images, -1)
        worst_B = distance_BP.argmax(1)
        rows = torch.arange(images)
        scores_B = distance_BP[rows, worst_B]
        own_BC = patches_PC.view(images, -1, patches_PC.shape[1])[rows, worst_B]
        near_BC = bank_MC[nearest_BP[rows, worst_B]]
        count = min(self.settings.neighbors, len(bank_MC))
        if count > 1:
            around_BK = torch.cdist(near_BC, bank_MC).topk(count, largest=False).indices
            distance_BK = (own_BC[:, None] - bank_MC[around_BK]).norm(dim=2)
            scores_B = scores_B * (1 - (distance_BK - scores_B[:, None]).exp().sum(1).reciprocal())
        heat_BHW = F.interpolate(distance_BP.view(images, 1, height, width), size, mode="bilinear", align_corners=False)
        return scores_B, blurred(heat_BHW)[:, 0]

    def _patches(self, output: Features) -> Tensor:
        """[B, C, H, W] of all stages, on the grid of the shallowest."""
        maps = self._stages(output)
        local = [F.avg_pool2d(map_.float(), 3, 1, 1) for map_ in maps]
        grid = local[0].shape[2:]
        return torch.cat([F.interpolate(map_, grid, mode="bilinear", align_corners=False) for map_ in local], 1)

    def _stages(self, output: Features) -> list[Tensor]:
        if self.settings.stages is not None:
            missing = [name for name in self.settings.stages if name not in output.maps]
            if missing:
                raise AnomalyError(
                    f"the method patchcore in anomaly.methods: stages: there is no stage {missing[0]}, only "
                    f"{', '.join(output.maps)}"
                )
            return sorted((output.maps[name] for name in self.settings.stages), key=lambda map_: -map_.shape[2])
        by_side = {map_.shape[2]: map_ for map_ in output.maps.values()}  # the deepest of each size
        sides = sorted(by_side, reverse=True)
        middle = sides[-3:-1] if len(sides) > 2 else sides[:1]
        return [by_side[side] for side in middle]

    @staticmethod
    def _drawn(patches_PC: Tensor, generator: torch.Generator, most: int) -> Tensor:
        if len(patches_PC) <= most:
            return patches_PC
        return patches_PC[torch.randperm(len(patches_PC), generator=generator)[:most].sort().values]


def coreset(patches_PC: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices [count] of a greedy coreset: each next patch is the one that is farthest from those chosen.

    Args:
        patches_PC: to choose from.
        count: how many, at most P.
        generator: of the projection and of the first patch.

    Returns:
        int64, in the order in which they were chosen.
    """
    width = patches_PC.shape[1]
    if width > PROJECTED:
        patches_PC = patches_PC @ torch.randn(width, PROJECTED, generator=generator) / PROJECTED**0.5
    chosen = torch.empty(count, dtype=torch.int64)
    chosen[0] = torch.randint(len(patches_PC), (), generator=generator)
    square_P = patches_PC.square().sum(1)
    distance_P = torch.full_like(square_P, torch.inf)
    for number in range(1, count):
        last = chosen[number - 1]
        apart = square_P + square_P[last] - 2 * (patches_PC @ patches_PC[last])
        distance_P = torch.minimum(distance_P, apart)
        distance_P[last] = -1
        chosen[number] = distance_P.argmax()
    return chosen


def blurred(heat_B1HW: Tensor, sigma: float = 4.0) -> Tensor:
    """A Gaussian blur, reflected at the border."""
    radius = min(int(4 * sigma + 0.5), min(heat_B1HW.shape[2:]) - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(heat_B1HW)
    padded = F.pad(heat_B1HW, [radius] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
