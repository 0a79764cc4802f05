"""Learning from a stream of tasks: heads in closed form, banks of deltas, HALRP's protocol, and what a stream costs.

    python benchmarks/continual.py [--only PARTS] [--quick] [--data FOLDER] [--out FOLDER] [--markdown FILE]

``--data`` is a folder with ``flowers61`` and ``cifar100``, each with ``train*.parquet`` and ``test*.parquet`` (columns
``image`` and ``label``). Of CIFAR-100, the first 50 training and 20 test images of each class are used, but for
``halrp``, which uses all. The parts, ``--only`` chooses some of them:

=========  ============================================================================================================
heads      closed-form heads and linear ones on frozen features (EfficientNet-Lite0): flowers in 5 tasks, CIFAR-100
           in 10, three orders of the classes
bank       a bank of at most 200 KB a task against a linear head for each task, on CIFAR-100 (task-incremental)
opd        how much a bank depends on the order of the tasks, by short fits
adapted    a delta that is trained on the first task, then SLDA, against SLDA on frozen features, on flowers
halrp      HALRP's protocol with LeNet, in its five orders: against sequential training, EWC, a linear head for each
           task on the network of the first, and a whole network for each task
branch     Branch-Tuning against fine-tuning in a stream without labels: ResNet-20, SimCLR and Barlow Twins
overhead   ``configs/continual/quick.yaml``: what sequential training and the bank forget, bytes of a task, and the
           share of wall time outside fits and evaluation; needs no data. ``bank`` has that share of longer streams
growth     seconds and bytes of a task in streams of 10 and of 100 tasks, with fits of two steps; needs no data
=========  ============================================================================================================

``heads`` is the same with and without ``--quick``. Of the others, ``--quick`` measures one seed, two orders, short
fits, and 30 tasks in place of 100. Fits of ``halrp`` have 2 epochs, of ``branch`` 5, of ``opd`` 1: their configs take
hours on a GPU. ``--epochs`` is the length of the fits of ``bank``, ``adapted``, ``halrp`` and ``branch``, ``--set
KEY=VALUE`` changes their configs; both are said in the results. Nothing is chosen on test images.

Every finished measurement is a line of ``results.jsonl`` in ``--out``, and a stopped run of a stream continues where it
stopped: the same command measures what is missing. ``--list`` measures nothing and shows the results so far.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import continual_branch
import continual_growth
import continual_parts
import measure  # noqa: F401  # this folder's augment.py must not hide the package
from continual_data import CIFAR, FLOWERS, TEST, TRAIN, DataSet
from continual_heads import HEADS, JOINT, SEQUENTIAL, experiment, frozen, learn, seconds_of_sums
from continual_lab import figure
from lab import Figure, Lab, Parts, measure_parts, options

ORDERS = (0, 1, 2)
ROUNDS = 20


def heads(lab: Lab) -> Iterator[Figure]:
    """Accuracy of heads on frozen features, and the time of their sums."""
    for data in (FLOWERS, CIFAR):
        of_orders = [of_heads(lab, data, order) for order in ORDERS]
        first = of_orders[0]
        sizes = (
            f"{first['classes']} classes in {first['tasks']} tasks, {first['sizes']['train']} training and "
            f"{first['sizes']['test']} test images, {data.size} px; orders {', '.join(map(str, ORDERS))}"
        )
        for head in (*HEADS, JOINT, SEQUENTIAL):
            name = head.replace(" ", "_")
            models = [line["models"][head] for line in of_orders]
            yield figure(f"{name}_last_{data.name}", [m["class"]["last"] for m in models], "fraction", sizes)
            if head != JOINT:  # it is trained once, at the end
                yield figure(f"{name}_mean_{data.name}", [m["class"]["mean"] for m in models], "fraction", sizes)
            yield figure(f"{name}_til_{data.name}", [m["task"]["last"] for m in models], "fraction", sizes)
        forgotten = [line["models"][SEQUENTIAL]["class"]["forgetting"] for line in of_orders]
        yield figure(f"sequential_head_forgetting_{data.name}", forgotten, "fraction", sizes)
        images = sum(first["sizes"].values())
        seconds = [1000 * first["features_seconds"] / images]
        yield figure(f"features_seconds_per_1000_images_{data.name}", seconds, "s", f"{data.size} px, once")
    seconds = of_sums(lab)
    detail = f"1,280 numbers an image, float64, for {', '.join(HEADS)} together; {len(seconds)} rounds"
    yield figure("sums_seconds_per_1000_images", seconds, "s", detail)


def of_heads(lab: Lab, data: DataSet, order: int) -> dict:
    def work() -> dict:
        made = experiment(data, lab.given.data, lab.given.out, order)
        of_all = frozen(made, lab.stop, lab.console)
        return {**learn(made, of_all), "features_seconds": of_all.seconds}

    counts = {"train": TRAIN, "test": TEST} if data == CIFAR else {}
    return lab.once({"part": "heads", "data": data.name, "size": data.size, "order": order, **counts}, work)


def of_sums(lab: Lab) -> list[float]:
    def work() -> dict:
        made = experiment(FLOWERS, lab.given.data, lab.given.out, ORDERS[0])
        return {"seconds": seconds_of_sums(frozen(made, lab.stop, lab.console), made, ROUNDS)}

    return lab.once({"part": "sums", "rounds": ROUNDS}, work)["seconds"]


PARTS: Parts = {
    "heads": heads,
    "bank": continual_parts.bank,
    "opd": continual_parts.opd,
    "adapted": continual_parts.adapted,
    "halrp": continual_parts.halrp,
    "branch": continual_branch.branch,
    "overhead": continual_parts.overhead,
    "growth": continual_growth.growth,
}


ABOUT = (
    "The parts are described at the top of `benchmarks/continual.py`. Mean over seeds, orders or rounds; bars are "
    "shown whether they are reached or not. Accuracies are fractions of test images: *last* after the last task, "
    "*mean* over the stages, of all classes seen so far; *til* where the task of an image is known."
)


def parser() -> argparse.ArgumentParser:
    made = options(__doc__, PARTS, "runs/continual")
    made.add_argument("--orders", help="of halrp, such as A,B; default: A to E")
    made.add_argument("--epochs", type=int, help="of the fits of bank, adapted, halrp and branch")
    return made


def main() -> None:
    measure_parts(parser().parse_args(), PARTS, "Learning from a stream of tasks", ABOUT)


if __name__ == "__main__":
    main()
