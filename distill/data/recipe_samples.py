"""Images that a recipe of operations moves to another domain: always the same ones from the same images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from augment.base import UserError
from distill.data.base import DataError, Sample, Samples

if TYPE_CHECKING:
    from augment.recipe import Op
    from augment.steps import Steps


class RecipeSamples:
    """Samples whose images are changed when they are read.

    The draws are a function of seed, domain, id and operation: no epoch changes an image, and training and evaluation
    see the same one. The id gets the name of the domain in front, since the same image is another sample there.

    Args:
        samples: of a split of a source.
        domain: name of the domain.
        recipe: operations in order; none: the images as they are.
        seed: of the draws.
    """

    def __init__(self, samples: Samples, domain: str, recipe: Sequence[Op], seed: int):
        self.samples, self.domain, self.recipe, self.seed = samples, domain, tuple(recipe), seed
        self.labels = samples.labels
        self.ids = [f"{domain}/{id}" for id in samples.ids]
        self._steps: Steps | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        image = self._changed(sample.image, sample.id) if self.recipe else sample.image
        return Sample(image, sample.label, self.ids[index])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_steps": None}

    @property
    def settings(self) -> str:
        """What the images depend on besides those of the source; for the fingerprint of the data."""
        return json.dumps([self.domain, [op.model_dump(mode="json") for op in self.recipe], self.seed], sort_keys=True)

    def _changed(self, image: np.ndarray, id: str) -> np.ndarray:
        import torch

        from augment.chain import Chain
        from augment.draws import Draws, sample_key

        if self._steps is None:
            self._steps = Chain(self.recipe, (1, 1), compile=False).passes  # the size is that of the operations' result
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        draws = Draws(self.seed, 0, f"domain/{self.domain}", torch.tensor([sample_key(id)]))
        try:
            with torch.no_grad():
                changed = self._steps(pixels, draws, draws)
        except UserError as error:
            raise DataError(f"{id}: recipe of the domain {self.domain!r}: {error}") from error
        whole = changed[0].clamp(0, 1).mul(np.iinfo(image.dtype).max).round().permute(1, 2, 0)
        return np.ascontiguousarray(whole.numpy().astype(image.dtype))
