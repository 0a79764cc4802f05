"""An objective of your own: the student's pooled features point where the teacher's do, after a linear projection.

In a config it is ``{type: "own_objective:Cosine", weight: 2}``, if this file is in the folder that you start from.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import distill


class Cosine(distill.Objective):
    """``L = mean(1 - cos(W s, t)) ^ power`` with the student's pooled features s [B, D] and the teacher's t [B, E]."""

    class Settings(distill.Objective.Settings):
        power: float = Field(1.0, gt=0, description="above 1, samples that are far off count for more")

    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    paper: ClassVar[str] = "none: an example"

    def __init__(self, settings, student, teacher):
        super().__init__(settings, student, teacher)
        self.projection = nn.Linear(student.pooled, teacher.pooled, bias=False)  # trained, never exported

    def loss(self, student: distill.Features, teacher: distill.Features, batch: distill.Targets) -> Tensor:
        cosine_B = F.cosine_similarity(self.projection(student.pooled.float()), teacher.pooled.detach())
        return (1 - cosine_B).pow(self.settings.power).mean()


def main(steps: int = 15) -> list[float]:
    torch.manual_seed(0)
    student = distill.create_student("embedded:tf_efficientnet_lite0", "bias", num_classes=10, size=32, needs="pooled")
    teacher = distill.create_teacher("embedded:tf_efficientnet_lite1", size=32, needs="pooled")
    # Another program writes the class's import path, "own_objective:Cosine", or a mapping with "type".
    cosine = distill.create_objective(f"{__name__}:Cosine", student=student, teacher=teacher, power=1.5)

    optimizer = torch.optim.AdamW([p for m in (student, cosine) for p in m.parameters() if p.requires_grad], lr=1e-2)
    images = torch.randn(16, 3, 32, 32)
    expected = teacher(((images,),))[0][0]
    batch = distill.Targets(torch.zeros(16, dtype=torch.int64))
    losses = []
    for _ in range(steps):
        loss = cosine(student(images), expected, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"{cosine.settings.type}: {losses[0]:.3f} → {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
