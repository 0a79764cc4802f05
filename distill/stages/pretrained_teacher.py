"""A teacher with pretrained networks that are not trained in the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from distill.models.teacher_settings import TeacherSettings
from distill.report.items import Item
from distill.run.context import RunContext
from distill.run.stage import Stage
from distill.run.teacher_network import check_file
from distill.stages.outputs import TeacherNetworks, network_notes, pretrained_networks


@dataclass(frozen=True)
class PretrainedTeacher(Stage[TeacherNetworks]):
    """Loads all networks of ``teacher`` but the momentum network."""

    settings: TeacherSettings

    recorded: ClassVar[bool] = False

    def check_files(self) -> None:
        for n, network in enumerate(self.settings.networks):
            if not network.is_momentum:
                check_file(network, f"teacher.networks.{n}")

    def check(self, context: RunContext) -> TeacherNetworks:
        return self.run(context, Path())

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"networks": self.settings.model_dump(mode="json", include={"networks"})}

    def run(self, context: RunContext, folder: Path) -> TeacherNetworks:
        return TeacherNetworks(pretrained_networks(self.settings.frozen, context.seed))

    def report(self, context: RunContext, output: TeacherNetworks) -> Iterable[Item]:
        yield from network_notes(output.networks)

    def load(self, context: RunContext, folder: Path) -> TeacherNetworks:
        return self.run(context, folder)
