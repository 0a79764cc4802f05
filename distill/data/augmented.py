"""Another source, with fixed operations applied to each image: a shifted domain without other data.

Every image gets the same draws in every epoch and run, keyed by its id, so the images are as repeatable as those of the
other source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, GetJsonSchemaHandler, SerializeAsAny

from augment.base import Registry
from augment.presets import Recipe
from distill.data.base import DataError, Sample, Samples, Source, Split, source_at

if TYPE_CHECKING:  # imports torch
    from augment.chain import Chain

KEY = "augmented"
"""Key of the draws, so that they differ from those of views."""


class _AnySource(Registry):
    """Of a source inside a source: the editor's schema does not go into its settings again, which would not end."""

    def __get_pydantic_json_schema__(self, source: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "object", "properties": {"type": {"enum": list(self.known())}}, "required": ["type"]}


class Augmented(Source):
    """The images of another source after operations of :mod:`augment`; splits, labels and ids are those of that source.

    Raises:
        DataError: images of more than 8 bits, which operations would reduce to 8.
    """

    class Settings(Source.Settings):
        type: Literal["augmented"] = "augmented"
        source: Annotated[SerializeAsAny[Source.Settings], _AnySource("distill.data", "Source")] = Field(
            description="the other source, as data.source"
        )
        operations: Recipe = Field(description="applied in order to every image, or a preset")
        size: int = Field(64, ge=8, le=4096, description="side in pixels of the images that result")
        splits: Annotated[tuple[Split, ...], Field(min_length=1)] = Field(
            ("train", "val", "test"),
            description="whose images they change; those of the others stay as they are",
        )
        draw_seed: int = Field(0, ge=0, lt=2**31, description="of the operations; another one gives another domain")

    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__(settings)
        assert settings.source.component is not None
        with source_at("data.source.source"):
            self.inner: Source = settings.source.component(settings.source)  # type: ignore[assignment, arg-type]
        if self.inner.depth != 8:
            raise DataError(f"source augmented: the images have {self.inner.depth} bits, and operations give 8")
        self.has_split, self.classes = self.inner.has_split, self.inner.classes
        self.reading, self.skipped = self.inner.reading, self.inner.skipped

    def split(self, name: Split) -> Samples:
        self.inner.channels = self.channels
        with source_at("data.source.source"):
            samples = self.inner.split(name)
        return AugmentedSamples(samples, self.settings) if name in self.settings.splits else samples

    def column(self, split: Split, name: str) -> Sequence[str]:
        return self.inner.column(split, name)


class AugmentedSamples:
    """A split after operations.

    Args:
        samples: of the other source.
        settings: with the operations.
    """

    def __init__(self, samples: Samples, settings: Augmented.Settings):
        self.samples, self.settings = samples, settings
        self._chain: Chain | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        import torch

        from augment.chain import Chain
        from augment.draws import Draws, sample_key

        sample, size = self.samples[index], self.settings.size
        if self._chain is None:
            self._chain = Chain(self.settings.operations, (size, size), compile=False)
        draws = Draws(self.settings.draw_seed, 0, KEY, torch.tensor([sample_key(sample.id)]))
        image = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))[None]
        with torch.no_grad():
            pixels = self._chain(image, draws)[0].mul(255).round().to(torch.uint8)
        return sample._replace(image=np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))

    @property
    def labels(self) -> Sequence[int]:
        return self.samples.labels

    @property
    def ids(self) -> Sequence[str]:
        return self.samples.ids

    @property
    def sizes(self) -> Sequence[int]:
        """Of the other source's files, for the fingerprint."""
        return getattr(self.samples, "sizes", ())
