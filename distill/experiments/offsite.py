"""Offsite-tuning: the owner of a network gives away an emulator, a user tunes its ends, the owner plugs them in.

Importing this does not import torch. Validating a config that names objectives, deltas or operations does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from augment.base import Settings, error_at, is_deferred
from distill.experiments.student import ExportingExperiment
from distill.training.settings import TrainingSettings

if TYPE_CHECKING:  # these import torch
    from distill.models.student import Student
    from distill.run.context import RunContext
    from distill.run.stage import Stage
    from distill.stages.make_emulator import MakeEmulator

DISTILL = {"epochs": 1, "optimizer": {"type": "adamw", "lr": 1e-4, "weight_decay": 0.1}}
"""Defaults of ``distill``, as in the paper."""

Names = Annotated[tuple[str, ...], Field(min_length=1)]


class OffsiteControls(Settings):
    """The controls that the plugged-in student is compared with."""

    linear_probe: bool = Field(True, description="logistic regression on the frozen features of the full network")
    on_site: bool = Field(
        True, description="the same deltas trained on the ends of the full network, as its owner could; costs a fit"
    )


class OffsiteExperiment(ExportingExperiment):
    """The config of both roles: an emulator of ``student.network``, deltas on its ends, the full network with them.

    ``student`` is the full network with deltas, which are attached to the ends alone.
    """

    trained: ClassVar[str] = "plugged-in/delta/delta.json"
    kind: Literal["offsite"] = "offsite"  # type: ignore[assignment]
    front: Names = Field(description="first blocks of the network, or stages: names or patterns, e.g. blocks.[01]")
    back: Names = Field(description="its last blocks, or stages; the others are the middle, which the owner keeps")
    keep: Annotated[float, Field(gt=0, lt=1)] | Annotated[int, Field(ge=0)] = Field(
        0.5,
        union_mode="left_to_right",
        description="of the middle's blocks with equal input and output shape, the fraction that the emulator keeps, "
        "or how many, a whole number; spread evenly, with the first and the last",
    )
    distill: TrainingSettings | None = Field(
        None,
        description="distill the kept blocks on the full middle's output first, without labels, on the images of data; "
        "default: no. Defaults of its keys: 1 epoch of adamw with lr 1e-4, weight_decay 0.1",
    )
    controls: OffsiteControls = OffsiteControls()

    def plan_emulator(self) -> MakeEmulator:
        """The stage of the owner that makes the emulator."""
        from distill.stages.make_emulator import Blocks, MakeEmulator

        blocks = Blocks(self.front, self.back, self.keep)
        return MakeEmulator("emulator", self.student.network, blocks, self.distill, self.augment)

    def plan(self) -> list[Stage]:
        from distill.run.stage import Ref
        from distill.stages.evaluate import Evaluate
        from distill.stages.linear_probe import FitLinearProbe
        from distill.stages.outputs import TrainedStudent
        from distill.stages.plug_in import PLUGGED, PlugIn
        from distill.stages.tune_ends import TuneEnds, TuneOnSite

        teachers, emulator = self.plan_teacher(), self.plan_emulator()
        parts: dict[str, Any] = {
            "student": self.student,
            "objectives": self.objectives,
            "augment": self.augment,
            "training": self.training,
            "teacher": self.teacher,
            "networks": tuple(stage.output for stage in teachers),
            "new_heads": self.fit_teacher is not None,
        }
        tuned = TuneEnds("student", **parts, emulator=emulator.output)
        plug = PlugIn("plugged-in", self.student, emulator.output, tuned.output)
        plugged = Ref(plug.name, TrainedStudent)
        probe: list[Any] = [FitLinearProbe("linear-probe", self.student.network)] if self.controls.linear_probe else []
        on_site = [TuneOnSite("on-site", **parts, blocks=emulator.blocks)] if self.controls.on_site else []
        models = (*(stage.output for stage in (*probe, tuned)), plugged, *(stage.output for stage in on_site))
        test = Evaluate("test", models=models, student=plugged)
        made: list[Stage] = [emulator, *teachers, tuned, plug, *probe, *on_site, test]
        return [*made, *self.plan_export(plugged, test.output, row=PLUGGED)]

    def load_student(self, context: RunContext, run: Path) -> Student:
        from distill.transfer.offsite import plugged_student

        return plugged_student((run / self.trained).parent, self.student.network, allow_plugins=True)[0]

    @model_validator(mode="before")
    @classmethod
    def _fills_in(cls, tree: Any) -> Any:
        """Set ``objectives`` to cross-entropy and the keys of ``distill`` to the paper's where they are left out."""
        if not isinstance(tree, dict):
            return tree
        if isinstance(given := tree.get("distill"), dict):
            optimizer = given.get("optimizer", {})
            merged = {**DISTILL["optimizer"], **optimizer} if isinstance(optimizer, dict) else optimizer  # type: ignore[dict-item]
            tree = {**tree, "distill": {**DISTILL, **given, "optimizer": merged}}
        for key in ("front", "back"):
            if isinstance(tree.get(key), str):
                tree = {**tree, key: [tree[key]]}
        return {"objectives": [{"type": "ce"}], **tree}

    @model_validator(mode="after")
    def _only_the_ends_are_tuned(self, info: ValidationInfo) -> Self:
        if is_deferred(info, "classes"):
            return self
        if self.student.train == "full":
            text = "full would train the middle too, which the owner keeps; use deltas (dense for whole layers)"
            raise error_at("student.train", text)
        if self.student.start is not None:
            raise error_at(
                "student.start", "a delta file of the full network does not fit its emulator; leave start out"
            )
        if not self.student.network.pretrained and self.student.network.checkpoint is None:
            text = "false: the owner's network has weights; name them, or a checkpoint"
            raise error_at("student.network.pretrained", text)
        if isinstance(self.keep, int) and self.keep < 2:
            text = f"{self.keep}: the first and the last block of the middle are always kept, so 2 or more"
            raise error_at("keep", text)
        if self.training.quantize is not None:
            why = "the deltas of the ends are sent to the owner in float32; use distill delta quantize afterwards"
            self.training.quantize.refuse_stored("training.quantize", why)
        if (training := self.distill) is not None:
            for name, given in {"keep": training.keep == "best", "early_stop": training.early_stop is not None}.items():
                if given:
                    raise error_at(f"distill.{name}", "the emulator has no classifier whose validation could choose")
            if training.test_every is not None:
                raise error_at("distill.test_every", "the emulator has no classifier to test")
            if training.curriculum is not None:
                raise error_at("distill.curriculum", "the loss of the distillation has no weights of samples")
            if training.quantize is not None:
                raise error_at("distill.quantize", "the emulator is not exported in a format that rounds")
        return self
