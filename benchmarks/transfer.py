"""Transfer: an unlabeled target domain, with and without the images of the source.

    python benchmarks/transfer.py [--only PARTS] [--quick] [--data FOLDER] [--out FOLDER] [--markdown FILE]

``--data`` is a folder with ``mnist``, ``usps``, ``pacs_photo``, ``pacs_sketch``, ``cifar100`` and ``flowers61``, each
with ``train*.parquet`` and ``test*.parquet`` (columns ``image`` and ``label``). ``--only`` chooses some of the parts:

============  =========================================================================================================
usps          MNIST with labels, USPS without (400 training images of each class, 64 px, EfficientNet-Lite0), tested on
              200 images of each class of USPS: configs/transfer/mnist_usps.yaml
sketch        photographs with labels, sketches without (PACS, 128 px), tested on its test sketches:
              configs/transfer/photo_sketch.yaml
source_free   the same sketches, from the delta file of the source-only student of ``sketch`` alone:
              configs/transfer/source_free.yaml
quick         configs/transfer/quick.yaml, which needs no data: what its student gains, and its wall time
offsite       flowers61, 128 px: an emulator with half of the middle, its ends tuned, plugged into the full network:
              configs/transfer/offsite.yaml
few_shot      flowers61, 128 px: 600 episodes of 5 of 20 classes by each head on features of the frozen network
              (configs/transfer/few_shot.yaml), and by deltas that Reptile trained on the other classes
              (configs/transfer/reptile.yaml)
fresh         digits with labels, shifted digits without (noise, contrast, rotation, size, inversion): source only,
              standardized, AdaBN, aligned statistics, and means of their answers, without training on the target; needs
              no data
text          CIFAR-100 through texts, without a label: ConSE by names and with definitions, and a student that such a
              teacher teaches (configs/transfer/text_teacher.yaml); 20 unseen classes of flowers61, five choices
              (configs/transfer/zero_shot.yaml). Needs the extra ``text``
ema           what an averaged teacher of one normalization costs: memory beside the deltas, and a step beside one with
              a frozen teacher of the same network; needs no data. With two normalizations it is computed twice
unsupervised  61 flowers without labels, 128 px: clusters, neighbors and anomalies of the features of the backbone, of a
              teacher, and of the student of both: configs/transfer/clusters.yaml
detection     blood cells with boxes (``bccd``, COCO JSON): a detector on a frozen backbone, on one with deltas, and on
              one that is trained as a whole, each with maps that were distilled without boxes, and without:
              configs/transfer/detection.yaml; needs pycocotools (the extra ``detection``)
============  =========================================================================================================

The target's labels are read for the test images alone, once; settings were chosen without them. ``--quick`` measures
one seed and one epoch of each fit. ``--set KEY=VALUE`` changes the configs, ``--seeds`` chooses seeds.

Every finished measurement is a line of ``results.jsonl`` in ``--out``, and a stopped run continues where it stopped:
the same command measures what is missing. ``--list`` measures nothing and shows the results so far.
"""

from __future__ import annotations

import argparse

import measure  # noqa: F401  # this folder's augment.py must not hide the package
import transfer_detection
import transfer_ema
import transfer_few_shot
import transfer_fresh
import transfer_offsite
import transfer_target
import transfer_text
import transfer_unsupervised
from lab import Parts, measure_parts, options

PARTS: Parts = {
    "usps": transfer_target.usps,
    "sketch": transfer_target.sketch,
    "source_free": transfer_target.source_free,
    "quick": transfer_target.quick,
    "offsite": transfer_offsite.offsite,
    "few_shot": transfer_few_shot.few_shot,
    "fresh": transfer_fresh.fresh,
    "text": transfer_text.text,
    "ema": transfer_ema.ema,
    "unsupervised": transfer_unsupervised.unsupervised,
    "detection": transfer_detection.detection,
}


ABOUT = (
    "The parts are described at the top of `benchmarks/transfer.py`. Mean over seeds; accuracies are fractions of test "
    "images."
)


def parser() -> argparse.ArgumentParser:
    return options(__doc__, PARTS, "runs/transfer")


def main() -> None:
    measure_parts(parser().parse_args(), PARTS, "Transfer", ABOUT)


if __name__ == "__main__":
    main()
