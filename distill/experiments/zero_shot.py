"""Zero-shot classification: a classifier from the texts of classes, folded into the network's classifier.

Importing this does not import torch. Validating a config that names encoders, knowledge or deltas does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from augment.base import Settings, error_at, is_deferred
from distill.experiments.fitted_heads import FittedHeadExperiment
from distill.text.settings import TextSettings

if TYPE_CHECKING:  # these import torch
    from distill.data.experiment_data import ExperimentData
    from distill.run.stage import Stage


class ZeroShotControls(Settings):
    """The controls that the exported head is compared with. All are seconds on cached features."""

    names: bool = Field(True, description="the same head from the names alone")
    shuffled: bool = Field(True, description="the same head, each class with the definitions of another one")


class ZeroShotExperiment(FittedHeadExperiment):
    """The config of a head that is made from texts: no network is trained.

    ==========  =====================================================================================================
    method      how images are mapped to texts
    ==========  =====================================================================================================
    ridge       a linear map from features to texts, fitted in closed form on the labels of the seen classes
    conse       the mean text of ImageNet's likeliest classes (ConSE) by the network's classifier, to which a linear map
                is fitted on the training images; no label is read
    direct      the network's classifier is the projection of an image-text model whose text tower is the encoder
    ==========  =====================================================================================================

    All give one plain linear layer, which is exported, and to which ``distill classes RUN add NAME`` adds a class.
    """

    kind: Literal["zero_shot"] = "zero_shot"  # type: ignore[assignment]
    text: TextSettings = Field({})  # type: ignore[assignment]  # plain values, since settings would import an encoder here
    method: Literal["ridge", "conse", "direct"] = "ridge"
    penalty: float = Field(10.0, gt=0, description="λ of the linear map, in units of the features' mean variance")
    top: int = Field(10, ge=1, description="conse: number of the network's likeliest classes that are read")
    unseen: tuple[str, ...] | int = Field(
        (), description="classes whose labels are not read, by name, or how many the seed chooses; measured apart"
    )
    controls: ZeroShotControls = ZeroShotControls()

    def describe(self, data: ExperimentData) -> list[str]:
        from distill.transfer.text_head import unseen_classes

        count = len(unseen_classes(self.unseen, data.classes, self.seed))
        if self.method == "ridge":
            return [f"zero-shot: labels of {len(data.classes) - count} classes are read, of {count} none"]
        return [f"zero-shot: no label is read, {len(data.classes)} classes by their texts"]

    def plan(self) -> list[Stage]:
        from distill.run.stage import Ref
        from distill.stages.embed_classes import EmbedClasses
        from distill.stages.evaluate_unseen import EvaluateUnseen
        from distill.stages.export_classes import ExportClasses
        from distill.stages.fit_shots import EvaluateShots, FewShotModel, FoldHead
        from distill.stages.fit_text_head import ApplyConse, FitTextHead
        from distill.stages.pooled_features import PooledFeatures
        from distill.stages.report import WriteReport
        from distill.stages.verify import VerifyExport

        network, labeled = self.student.network, self.method == "ridge"
        texts = EmbedClasses("texts", self.text, self._variants)
        features = PooledFeatures("features", ("train",), network, labeled=labeled, optional=("val", "test"))
        parts: dict[str, Any] = {
            "settings": self.text,
            "network": network,
            "texts": texts.output,
            "features": features.output,
        }
        fit: dict[str, Any] = {
            **parts,
            "method": self.method,
            "penalty": self.penalty,
            "top": self.top,
            "unseen": self.unseen,
        }
        heads = [FitTextHead(f"heads/{variant}", variant=variant, **fit) for variant in self._variants]
        conse: list[Any] = []
        if self.method == "conse":
            own = [variant for variant in self._variants if variant != "shuffled"]
            conse = [ApplyConse(f"conse/{variant}", variant=variant, top=self.top, **parts) for variant in own]
        shipped = next(stage for stage in heads if stage.variant == self.text.texts)
        student = FoldHead("student", self.student, Ref(shipped.name, FewShotModel), labeled=labeled)
        models: tuple[Any, ...] = tuple(stage.output for stage in (*conse, *heads, student))
        test = EvaluateShots("test", models=models, student=student.output, labeled=labeled)
        made: list[Stage] = [texts, features, *conse, *heads, student, test]
        if self.unseen:
            made.append(EvaluateUnseen("unseen", self.unseen, test.output))
        export = ExportClasses(
            "export", self.export, student.output, test.output, text=self.text, head=shipped.output, texts=texts.output
        )
        verify = VerifyExport("verify", self.student, self.export, student.output, export.output)
        measured = self.plan_measuring(student.output, export.output)
        return [*made, export, verify, *measured, WriteReport("report", baseline="names")]

    @property
    def _variants(self) -> tuple[str, ...]:
        """The texts that a head is made from, the exported one last."""
        own = self.text.texts
        with_definitions = own != "names"
        shuffled = ("shuffled",) if self.controls.shuffled and with_definitions else ()
        names = ("names",) if self.controls.names and with_definitions else ()
        return (*shuffled, *names, own)

    @model_validator(mode="after")
    def _fits_texts_alone(self, info: ValidationInfo) -> Self:
        if self.student.start is not None:
            raise error_at("student.start", "kind: zero_shot reads no delta file: the network is frozen as it is")
        if self.student.deltas:
            raise error_at("student.deltas", "the network is frozen as it is; leave them out")
        if isinstance(self.unseen, int) and self.unseen < 0:
            raise error_at("unseen", f"{self.unseen} classes; give 0 or more")
        if self.method == "direct" and not is_deferred(info, "classes"):
            encoder: Any = self.text.encoder
            if not encoder.component.image_text:
                text = f"direct needs the text tower of an image-text model, and {encoder.type} is none; use open_clip"
                raise error_at("text.encoder", text)
        return self
