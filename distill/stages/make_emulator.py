"""The owner's part of offsite-tuning: a network whose middle has lost blocks, in a folder to give away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from augment.policy import AugmentSettings
from distill.deltas.attach import merge
from distill.deltas.dense import Dense
from distill.deltas.sites import classifier_names, inside
from distill.deltas.state import backbone_state
from distill.export.targets.timm_folder import check_timm_folder, write_timm_folder
from distill.models.emulator import EmulatorPlan, drop_blocks, keep_owners_blocks, plan_emulator
from distill.models.network import Network, create_network, stage_names
from distill.models.settings import NetworkSettings, StudentSettings
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.models.weights import NetworkError
from distill.objectives.fitnets import FitNets
from distill.report.curves import read_curves
from distill.report.items import Column, Curve, Files, Item, Table, TableRow
from distill.run.context import RunContext
from distill.run.fit_spec import FitSpec
from distill.run.folder import is_first_rank
from distill.run.prepare import StudentSpec, load_trained, trial_student
from distill.run.stage import Ref, Stage, StageError
from distill.run.teacher_network import check_file
from distill.run.trial import trying
from distill.stages.outputs import fit_notes
from distill.training.fit import FitSummary, load_summary
from distill.training.settings import TrainingSettings
from distill.transfer.offsite import Leaving, leaving

FOLDER = "network"
MAPS = frozenset({"maps"})


@dataclass(frozen=True)
class Blocks:
    """Which blocks of a network are its ends, and how many of the others are kept."""

    front: tuple[str, ...]
    back: tuple[str, ...]
    keep: float | int

    def plan(self, network: NetworkSettings) -> tuple[Network, EmulatorPlan]:
        """The full network without a classifier, and the plan of its emulator.

        Raises:
            StageError: there is no such emulator; the text names the key of the config.
        """
        made = create_network(network, 0)
        try:
            return made, plan_emulator(made.model, self.front, self.back, self.keep)
        except NetworkError as error:
            raise StageError(str(error)) from error

    def on_site(self, network: NetworkSettings) -> Network:
        """The full network, of which no delta can change the middle."""
        made, plan = self.plan(network)
        keep_owners_blocks(made.model, plan)
        return made


@dataclass(frozen=True)
class Emulator:
    """An emulator in its folder, with a few facts about it."""

    folder: Path
    plan: EmulatorPlan
    leaving: Leaving
    fit: FitSummary | None
    """Of its distillation; None: its blocks are those of the full network."""

    @property
    def path(self) -> Path:
        """The folder to give away."""
        return self.folder / FOLDER


@dataclass(frozen=True)
class MakeEmulator(Stage[Emulator]):
    """Drops blocks of the middle, distills the others if asked for, and writes the folder of the emulator.

    The distillation trains the weights of the kept blocks of the middle, so that the middle's output is that of the
    full middle for the same input: ``mean((t − s)²) / mean(t²)`` over the batch, which is ``fitnets`` without
    projector. It reads the images of the training split, and no label.

    Args:
        network: the full one.
        blocks: which are its ends, and how many of the others are kept.
        distill: training of the kept blocks; None: they are those of the full network.
        augment: of the images of that training, one view for both networks.
    """

    network: NetworkSettings
    blocks: Blocks
    distill: TrainingSettings | None
    augment: AugmentSettings

    def check_files(self) -> None:
        """Also that there is such an emulator."""
        check_file(self.network, "student.network")
        self.blocks.plan(self.network)

    def check(self, context: RunContext) -> Emulator:
        """Write the emulator without its distillation, of which one step is tried, and print what leaves the owner."""
        assert context.trial is not None
        emulator = self.undistilled(context.trial.folder / self.name)
        if self.distill is not None:
            fit_spec = self._fit_spec(context, emulator.plan)
            with trying(f"{self.name}: building the emulator"):
                student = trial_student(self._spec(context, emulator.plan))
            fit_spec.check(student, self.name)
        distilled = ", before the middle is distilled" if self.distill is not None else ""
        context.print(f"emulator: {emulator.plan}\n  {emulator.leaving}{distilled}")
        return emulator

    def key(self, context: RunContext) -> Mapping[str, Any]:
        made: dict[str, Any] = {"network": self.network.model_dump(mode="json"), "blocks": vars(self.blocks)}
        if self.distill is not None:
            made["distill"] = self.distill.model_dump(mode="json")
            made["augment"] = self._augment().model_dump(mode="json")
            made["data"] = [context.data.fingerprint(), context.data.settings.model_dump(mode="json")]
        return made

    def run(self, context: RunContext, folder: Path) -> Emulator:
        owner, plan = self.blocks.plan(self.network)
        student, fit = None, None
        if self.distill is not None:
            student = self._spec(context, plan).build()
            fit = self._fit_spec(context, plan).fit(student, folder, self.name)
        made = self._written(self._emulator(owner, plan, student), plan, folder, fit, write=is_first_rank())
        context.wait_for_ranks()
        if fit is not None:
            context.print(f"emulator, distilled: {made.leaving}")
        return made

    def load(self, context: RunContext, folder: Path) -> Emulator:
        owner, plan = self.blocks.plan(self.network)
        student, fit = None, None
        if self.distill is not None:
            student, fit = load_trained(self._spec(context, plan), folder), load_summary(folder)
        check_timm_folder(folder / FOLDER)
        return self._written(self._emulator(owner, plan, student), plan, folder, fit, write=False)

    def report(self, context: RunContext, output: Emulator) -> Iterable[Item]:
        made = output.leaving
        if output.fit is not None:
            if (log := output.folder / "log.csv").is_file():
                yield Curve(name="emulator", log=read_curves(log))
            yield from fit_notes("emulator", output.fit)
        rows = [
            ("the full network", made.owner, None),
            ("emulator, as it is given away", made.emulator, made.emulator / made.owner),
            ("of it, verbatim weights of the owner", made.verbatim, made.share),
        ]
        columns = (
            Column(heading="weights"),
            Column(heading="size", unit="bytes"),
            Column(heading="share, %", unit="percent"),
        )
        yield Table(
            title="What the owner gives away",
            columns=columns,
            rows=tuple(TableRow(cells=row) for row in rows),
            caption=f"Without classifiers. {output.plan}.",
        )
        yield Files(paths={"emulator": output.path})

    def undistilled(self, folder: Path) -> Emulator:
        """Write the emulator whose blocks are those of the full network to a folder."""
        owner, plan = self.blocks.plan(self.network)
        return self._written(self._emulator(owner, plan, None), plan, folder, None)

    def _emulator(self, owner: Network, plan: EmulatorPlan, student: Student | None) -> tuple[nn.Module, Leaving, str]:
        """The emulator, what leaves with it, and where its weights come from."""
        before = _weights(owner.model)
        if student is None:
            model = drop_blocks(owner.model, plan.dropped)
        else:
            model = student.model
            merge(model)
        origin = f"emulator of {owner.architecture}"  # not the owner's, which may be a path of their machine
        return keep_owners_blocks(model, plan), leaving(before, _weights(model)), origin

    def _written(
        self,
        made: tuple[nn.Module, Leaving, str],
        plan: EmulatorPlan,
        folder: Path,
        fit: FitSummary | None,
        write: bool = True,
    ) -> Emulator:
        model, left, origin = made
        if write:
            write_timm_folder(folder / FOLDER, model, origin=origin)
        return Emulator(folder, plan, left, fit)

    def _spec(self, context: RunContext, plan: EmulatorPlan) -> StudentSpec:
        """The student of the distillation: dense deltas on the kept blocks, and no head."""

        def dropped() -> Network:
            made = create_network(self.network, 0)
            return replace(made, model=drop_blocks(made.model, plan.dropped))

        sites = tuple(f"{name}.*" for name in plan.kept)
        settings = StudentSettings(network=self.network, deltas=(Dense.Settings(sites=sites),))
        return StudentSpec(settings, context.seed, 0, MAPS, network=dropped)

    def _fit_spec(self, context: RunContext, plan: EmulatorPlan) -> FitSpec:
        assert self.distill is not None
        full = create_network(self.network, 0)
        cut = _cut(full.model, plan)
        hint = FitNets.Settings(weight=1.0, stages={cut: cut}, projector="none", normalize="rms")
        teacher = Teacher([full], needs=MAPS)
        return FitSpec(context, teacher, (hint,), self._augment(), self.distill, validates=False)

    def _augment(self) -> AugmentSettings:
        return self.augment.one_view().model_copy(update={"mix": None, "ramp": None})


def emulator_folder(context: RunContext, emulator: Ref[Emulator]) -> Path:
    """The folder that is given away; in the checks of a resumed run, whose emulator is finished, that in the run."""
    made = context.find(emulator)
    if made is not None:
        return made.path
    assert context.folder is not None
    return context.folder.path / emulator.stage / FOLDER


def settings_of(folder: Path, network: NetworkSettings) -> NetworkSettings:
    """An emulator in its folder as a network, with the input of the full one."""
    own = {"model": f"local-dir:{folder.resolve()}", "pretrained": True, "checkpoint": None, "prefix": None}
    return network.model_copy(update=own)


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return backbone_state(model, classifier_names(model))


def _cut(model: nn.Module, plan: EmulatorPlan) -> str:
    """The stage whose map is the middle's output.

    Raises:
        StageError: timm gives no map there.
    """
    last = plan.middle[-1]
    for name in stage_names(model):
        if inside(last, [name]) and not any(inside(block, [name]) for block in plan.back):
            return name
    raise StageError(
        f"distill: the middle ends with {last!r}, whose output timm does not give as a map; let back begin after "
        f"one of {', '.join(stage_names(model))}, or leave distill out"
    )
