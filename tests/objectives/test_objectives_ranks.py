"""Two real processes with half the batch each must train as one process with the whole batch."""

import pytest
import torch
import torch.multiprocessing as mp
from test_objectives_contract import SMALL, Called
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from warm_server import warm_server

from augment.base import Registry
from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Targets
from distill.objectives.ce import CrossEntropy
from distill.objectives.icd import ICD
from distill.objectives.kd import KD
from distill.objectives.ranks import gather_batch, rank, sum_over_ranks, world_size

SHAPES = (
    FeatureShapes(3, 6, {"a": (6, 2, 2), "b": (6, 2, 1)}, nn.Linear(6, 3)),
    FeatureShapes(3, 9, {"a": (9, 2, 2), "b": (9, 2, 1)}, nn.Linear(9, 3)),
)
KNOWN = Registry("distill.objectives", "Objective").known()
TERMS = {name: settings(type=name, weight=1.0, **SMALL.get(name, {})) for name, settings in KNOWN.items()} | {
    "ce_smooth": CrossEntropy.Settings(label_smoothing=0.1),
    "kd_standardized": KD.Settings(standardize=True, temperature=2.0),
    "icd_masked": ICD.Settings(dim=4, mask_same_class=True),
}
# Three labeled samples on the first rank and one on the second: a mean of means would weigh them wrongly.
LABELS = torch.tensor([0, 1, 0, -1, -1, -1, 0, -1])
MEMORY = torch.tensor([False, True, True, False, False, True, False, False])
WEIGHTS = torch.tensor([0.2, 2.0, 0.5, 1.0, 3.0, 0.1, 0.7, 0.5])


class Step(nn.Module):
    """A small network, an objective, and nothing else."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.token = nn.Linear(5, 24), nn.Linear(6, 3), nn.Linear(6, 3)
        self.term = Called(TERMS[name], *SHAPES)
        self.term.remember(LABELS)

    def forward(self, images, teacher, batch):
        map_ = self.body(images).unflatten(1, (6, 2, 2))
        pooled = map_.mean((2, 3))
        maps = {"a": map_, "b": map_.square().mean(3, keepdim=True)}
        return self.term(Features(self.head(pooled), pooled, maps, self.token(pooled)), teacher, batch)


def data(weighed, rows=slice(None)):
    generator = torch.Generator().manual_seed(1)
    images, logits, pooled = (torch.randn(8, width, generator=generator) for width in (5, 3, 9))
    maps = {name: torch.randn(8, *size, generator=generator)[rows] for name, size in SHAPES[1].maps.items()}
    return (
        images[rows],
        Features(logits[rows], pooled[rows], maps),
        Targets(
            LABELS[rows],
            torch.arange(8)[rows],
            weights=WEIGHTS[rows] if weighed else None,
            is_memory=MEMORY[rows],
            stored_logits=logits.flip(0)[rows],
        ),
    )


def run(step, rows):
    weighed = getattr(step, "module", step).term.weighs_samples
    loss = step(*data(weighed, rows))
    loss.backward()
    gradients = {name.removeprefix("module."): p.grad for name, p in step.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def worker(number, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    try:
        results = {}
        for name in TERMS:
            step = DistributedDataParallel(Step(name), find_unused_parameters=True)  # heads that the term does not read
            loss, gradients = run(step, slice(4 * number, 4 * number + 4))
            results[name] = sum_over_ranks(loss) / 2, gradients
        part = (torch.arange(6.0).reshape(2, 3).T + 10 * number).requires_grad_()  # not contiguous, on purpose
        whole = gather_batch(part)
        (whole * torch.arange(12.0).reshape(6, 2) * (number + 1)).sum().backward()
        results["gather"] = rank(), world_size(), whole.detach(), part.grad
        torch.save(results, f"{folder}/{number}.pt")
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    warm_server()
    mp.start_processes(worker, (str(folder),), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(2)]


@pytest.mark.parametrize("name", TERMS)
def test_two_ranks_equal_one_with_the_whole_batch(name, two_ranks):
    loss, gradients = run(Step(name), slice(None))
    for loss_of_rank, gradients_of_rank in (ranks[name] for ranks in two_ranks):
        torch.testing.assert_close(loss_of_rank, loss, rtol=1e-5, atol=1e-6)
        for key, gradient in gradients.items():
            torch.testing.assert_close(
                gradients_of_rank[key], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}"
            )


def test_gather_keeps_rank_order_and_sums_what_all_ranks_ask(two_ranks):
    part = torch.arange(6.0).reshape(2, 3).T
    asked = 3 * torch.arange(12.0).reshape(6, 2)  # 1 × from the first rank and 2 × from the second
    for number, result in enumerate(two_ranks):
        own_rank, ranks, whole, gradient = result["gather"]
        assert (own_rank, ranks) == (number, 2)
        torch.testing.assert_close(whole, torch.cat([part, part + 10]))
        torch.testing.assert_close(gradient, asked[3 * number : 3 * number + 3])


def test_one_process_is_one_rank():
    local = torch.randn(4, 3)
    assert gather_batch(local) is local and (rank(), world_size()) == (0, 1)
    assert sum_over_ranks(local).equal(local)
