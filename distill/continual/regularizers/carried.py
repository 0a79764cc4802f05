"""The regularizers of a learner from task to task: built from settings, prepared after a task, kept in a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from augment.chain import eval_view
from augment.views import InputSpec
from distill.continual.errors import ContinualError
from distill.continual.memory.keyed import keyed_order
from distill.continual.regularizers.base import Regularizer
from distill.data.base import UNLABELED
from distill.data.split import Subset
from distill.files import write_atomic
from distill.models.student import Student
from distill.run.context import RunContext
from distill.training.task_penalty import trained_parameters

FILE = "regularizers.safetensors"


def build(settings: Sequence[Regularizer.Settings], file: Path | None = None) -> dict[str, Regularizer]:
    """The regularizers, by their types; the second one of a type is named ``type-2``.

    Args:
        settings: of each.
        file: their states after the task before; None: they begin.

    Raises:
        ContinualError: the file cannot be read, or holds other regularizers.
    """
    seen: Counter[str] = Counter()
    made: dict[str, Regularizer] = {}
    for own in settings:
        assert own.component is not None and issubclass(own.component, Regularizer)
        kind = own.type.rpartition(":")[2].lower()
        seen[kind] += 1
        made[kind if seen[kind] == 1 else f"{kind}-{seen[kind]}"] = own.component(own)
    if settings and file is not None:
        try:
            tensors = safetensors.torch.load(file.read_bytes())
        except (OSError, safetensors.SafetensorError) as error:
            raise ContinualError(f"{file}: no readable file of regularizers ({error})") from error
        for name, regularizer in made.items():
            own_state = {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}
            if not own_state:
                raise ContinualError(f"{file}: holds no state of {name}")
            regularizer.load_state_dict(own_state)
    return made


def close(
    regularizers: Mapping[str, Regularizer], student: Student, context: RunContext, present: bool = False
) -> dict[str, Tensor]:
    """Prepare the regularizers for the next task.

    Args:
        regularizers: of the task, after its training.
        student: as it was trained; on any device, to which it is returned.
        context: with the data of the task alone.
        present: whether the student was trained among the classes of the task alone, so that p(y|x) is that of these.

    Returns:
        Name → tensor of all of their states, on the CPU.
    """
    parameters = trained_parameters(student)
    before = next(iter(parameters.values())).device
    student.to(context.device)
    labels = context.data.subset("train").labels
    rows = sorted(set(labels[labels != UNLABELED].tolist())) if present else []
    model = Among(student, rows) if rows else student
    for regularizer in regularizers.values():
        batches = TrainingViews(student.input, context) if regularizer.needs_images else ()
        regularizer.prepare(model, parameters, batches)
    student.to(before)
    return {
        f"{name}/{key}": tensor.detach().cpu().contiguous()
        for name, regularizer in regularizers.items()
        for key, tensor in regularizer.state_dict().items()
    }


def save(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the states atomically."""
    write_atomic(folder / FILE, safetensors.torch.save(dict(tensors)))


class Among(nn.Module):
    """A student whose logits are those of some classes.

    Args:
        student: gives the logits of all classes.
        rows: indices of the classes.
    """

    def __init__(self, student: nn.Module, rows: Sequence[int]):
        super().__init__()
        self.student, self.rows = student, list(rows)

    def extra_repr(self) -> str:
        return f"classes={self.rows}"

    def forward(self, views: Tensor) -> Tensor:
        outputs = self.student(views)
        logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
        return logits[:, self.rows]


class TrainingViews:
    """Evaluation views of training images with their ids; each pass is the same.

    The images come in the order of a keyed hash, so that the first ones are a sample of all: a folder's are sorted by
    class.

    Args:
        spec: of the network's input.
        context: with the data.
    """

    def __init__(self, spec: InputSpec, context: RunContext):
        self.spec, self.context = spec, context

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        whole, device = self.context.data, self.context.device
        train = whole.subset("train")
        order = keyed_order(torch.from_numpy(train.keys), whole.seed).numpy()
        keyed = Subset(train.samples, train.indices[order], train.labels[order])
        data = whole.part(whole.classes, {"train": keyed}, whole.seed)
        for batch in data.eval_loader("train", shared=False, spec=self.spec):
            yield eval_view(batch.images.to(device), self.spec), torch.as_tensor(batch.ids)
