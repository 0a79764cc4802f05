"""Settings of the data. Importing this does not import torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from augment.base import Registry, Settings
from augment.loader import LoaderOp
from distill.data.base import MAX_CHANNELS, Source
from distill.data.canvas import Fit


class DataSettings(Settings):
    """The source of the images, and how they are loaded."""

    source: Annotated[Source.Settings, Registry("distill.data", "Source")]
    target: Annotated[Source.Settings, Registry("distill.data", "Source")] | None = Field(
        None,
        description="images of the target domain, trained on without their labels, half of each batch; only with kind:"
        " target_domain. Classes are matched by name",
    )
    batch_size: int = Field(64, ge=1, description="samples in a training batch, over all ranks")
    size: int = Field(224, ge=8, le=4096, description="side in pixels of the canvas that views are cropped from")
    fit: Fit = Field("crop", description="crop the long side, pad the short side, or squash the image")
    channels: int = Field(
        3,
        ge=1,
        le=MAX_CHANNELS,
        description="channels of the images: 1 gray, 3 RGB, 4 RGBA or the bands of a TIFF; more from TIFFs, .npy"
        " arrays, arrays in Parquet or a source of your own. The networks take as many (in_chans)",
    )
    depth: Literal[8, 16] | None = Field(
        None,
        description="bits of a value up to the views, which are floats; None: 16 if more than 8 bits of the images are"
        " in use. 8 takes half of the memory",
    )
    val_fraction: float = Field(0.1, ge=0, lt=1, description="fraction of train held out if the source has no val")
    labels_per_class: int | None = Field(None, ge=0, description="labels visible in training; None: all, 0: none")
    label_seed: int = Field(0, ge=0, description="selects the visible labels, nothing else")
    sampler: Literal["shuffled", "balanced"] = Field(
        "shuffled",
        description="shuffled: each training sample once in an epoch; balanced: every class equally often, samples of"
        " small classes several times, for a skewed set",
    )
    loader_ops: tuple[LoaderOp, ...] = Field((), description="albumentations that the workers run in training")
    corrupt_budget: float = Field(0.01, ge=0, lt=1, description="fraction of training images that may be unreadable")
    on_device: bool = Field(
        False,
        description="decode each split once, at its first use, and hold it as uint8 on the networks' device: the same"
        " batches without workers, for datasets that fit in memory (3 x size x size bytes an image)",
    )
    workers: int = Field(
        2, ge=0, description="loader processes of each rank; 0: the main process reads; with on_device, they decode"
    )
    worker_timeout: float = Field(300, gt=0, description="seconds without a batch after which workers count as hung")
    start_method: Literal["fork", "spawn", "forkserver"] | None = Field(
        None, description="how worker processes are started; None: the platform's default"
    )

    @model_validator(mode="after")
    def _no_loader_no_ops(self) -> DataSettings:
        if self.on_device and self.loader_ops:
            raise ValueError(
                "the loader's workers run loader_ops, and with on_device there are none: use only one of the two"
            )
        return self

    @property
    def processes(self) -> dict[str, Any]:
        """The arguments of a loader about its workers."""
        return {"workers": self.workers, "timeout": self.worker_timeout, "start_method": self.start_method}
