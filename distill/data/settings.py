"""Settings of the data; no torch in here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from augment.base import Registry, Settings
from augment.loader import LoaderOp
from distill.data.base import Source
from distill.data.canvas import Fit


class DataSettings(Settings):
    """Where the images come from and how they are loaded."""

    source: Annotated[Source.Settings, Registry("distill.data", "Source")]
    batch_size: int = Field(64, ge=1, description="samples in a training batch, over all ranks")
    size: int = Field(224, ge=8, le=4096, description="side in pixels of the canvas that augmentation starts from")
    fit: Fit = Field("crop", description="crop the long side, pad the short side, or squash the image")
    val_fraction: float = Field(0.1, ge=0, lt=1, description="share of train held out where the source has no val")
    labels_per_class: int | None = Field(None, ge=0, description="labels shown in training; None: all, 0: none")
    label_seed: int = Field(0, ge=0, description="which labels are shown; nothing else depends on it")
    loader_ops: tuple[LoaderOp, ...] = Field((), description="albumentations run by the loader, in training only")
    corrupt_budget: float = Field(0.01, ge=0, lt=1, description="share of training images that may be unreadable")
    on_device: bool = Field(
        False,
        description="decode every split once, when it is first used, and hold it as bytes where the networks are:"
        " the same batches without workers, for data sets that fit (3 x size x size bytes an image)",
    )
    workers: int = Field(
        2, ge=0, description="loader processes of each rank; 0 reads in the main process; with on_device they decode"
    )
    worker_timeout: float = Field(300, gt=0, description="seconds without a batch after which workers count as hung")
    start_method: Literal["fork", "spawn", "forkserver"] | None = Field(
        None, description="how worker processes start; None: the platform's own"
    )

    @model_validator(mode="after")
    def _no_loader_no_ops(self) -> DataSettings:
        if self.on_device and self.loader_ops:
            raise ValueError("loader_ops are run by the loader, and on_device leaves it nothing to do: use one of them")
        return self

    @property
    def processes(self) -> dict[str, Any]:
        """What a loader is told of its workers."""
        return {"workers": self.workers, "timeout": self.worker_timeout, "start_method": self.start_method}
