"""The networks of ``deltas.py``, their training steps, and the memory of a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from measure import Turns
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from distill.deltas.base import DeltaSettings
from distill.deltas.sites import classifier_names
from distill.models.network import Network, NetworkSettings, create_network
from distill.models.settings import LearningSettings
from distill.models.student import Student
from distill.models.timm_models import new_classifier

CLASSES, RANK = 100, 8
Step = Callable[[], object]


@dataclass
class Bench:
    """Options of a run, and the networks, images and steps that all parts use."""

    device: torch.device
    rounds: int
    window: int
    batch: int
    size: int
    console: Console

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def network(self, architecture: str) -> nn.Module:
        return self._network(architecture).model.to(self.device)

    def _network(self, architecture: str) -> Network:
        torch.manual_seed(0)
        return create_network(NetworkSettings(model=architecture, pretrained=False, size=self.size), CLASSES)

    def student(self, architecture: str, *deltas: DeltaSettings, classes: int = CLASSES) -> Student:
        network = self._network(architecture)
        if classes != CLASSES:  # the backbone stays the same, which one that is made with other classes would not
            new_classifier(network.model, classes)
        return Student(network, LearningSettings(deltas=deltas)).to(self.device).train()

    def images(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, self.size, self.size, generator=generator)
        return images.to(self.device).contiguous(memory_format=torch.channels_last)

    def step(self, model: Callable[[Tensor], Tensor], parameters: list[nn.Parameter]) -> Step:
        images, labels = self.images(), torch.arange(self.batch, device=self.device) % CLASSES
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

        def step() -> None:
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def by_turns(self, steps: dict[str, Step]) -> dict[str, list[float]]:
        """Seconds a step of each side, one number for each round."""
        current = [""]
        turns = Turns(
            None, tuple(steps), self.rounds, 1, self.window, lambda side: current.__setitem__(0, side), self.clock
        )
        for _ in turns:
            steps[current[0]]()
        return turns.seconds


def trained(bench: Bench, student: Student) -> Step:
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    return bench.step(lambda images: student(images).logits, parameters)


def full(bench: Bench, architecture: str) -> Step:
    model = bench.network(architecture).eval().requires_grad_(True).to(memory_format=torch.channels_last)
    return bench.step(model, list(model.parameters()))


def floor(bench: Bench, architecture: str) -> Step:
    """Forward, and the gradient of the input; nothing is trained."""
    model = bench.network(architecture).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    images = bench.images().requires_grad_(True)
    labels = torch.arange(bench.batch, device=bench.device) % CLASSES

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        images.grad = None

    return step


def with_peft(model: nn.Module, layers: list[str]) -> tuple[nn.Module, list[nn.Parameter]]:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=layers, modules_to_save=list(classifier_names(model)), bias="none"
    )
    adapted = get_peft_model(model, config).to(memory_format=torch.channels_last)
    for module in adapted.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return adapted, [parameter for parameter in adapted.parameters() if parameter.requires_grad]


def peak_bytes(bench: Bench, step: Step) -> int:
    """Peak of the bytes that a step allocates beyond those allocated before it."""
    step()
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    if not changes:
        raise RuntimeError("the profiler recorded no allocation; this version of torch reports memory another way")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak
