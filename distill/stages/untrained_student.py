"""The student before the first task of a stream with equal classes in all tasks, for its forward transfer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from distill.continual.learned import LearnedNetwork, LearnedTask
from distill.continual.task import Task, keyed_seed
from distill.models.network import create_network
from distill.models.settings import NetworkSettings
from distill.run.context import RunContext
from distill.run.stage import Stage

NAME = "untrained"


@dataclass(frozen=True)
class UntrainedStudent(Stage[LearnedTask]):
    """The student's network with the head that the first task starts from; deltas start as the identity.

    Args:
        task: the first one.
        network: of the student.
    """

    task: Task
    network: NetworkSettings

    recorded: ClassVar[bool] = False

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"task": self.task.name, "network": self.network.model_dump(mode="json")}

    def run(self, context: RunContext, folder: Path) -> LearnedTask:
        classes = self.task.classes
        torch.manual_seed(keyed_seed(context.seed, self.task.name))
        network = create_network(self.network, len(classes))
        part = LearnedNetwork(NAME, classes, lambda: network, 0, 0)
        return LearnedTask(NAME, classes, (part,), folder, folder)

    def load(self, context: RunContext, folder: Path) -> LearnedTask:
        return self.run(context, folder)
