"""Fits in as many ranks as ``training.devices`` says, each in a folder: ``fits_in_ranks.py OUTPUT``. See its test."""

import sys
import warnings
from pathlib import Path

import torch
from toy_training import FITS_IN_RANKS, Made, all_views, experiment, noting_views, student_fit

from distill.run.folder import local_rank
from distill.run.stages import linear_probe
from distill.run.workshop import Workshop, make_data, predict_student
from distill.training.signals import StopSignal

if __name__ == "__main__":
    warnings.simplefilter("error")
    output = Path(sys.argv[1])
    for name, changes in FITS_IN_RANKS.items():
        settings = experiment(output, **{**changes, "training": {**changes.get("training", {}), "devices": 2}})
        made: list[Made] = []
        with noting_views(made):
            student = student_fit(settings, output / name).student
        assert student is not None
        torch.save(
            [(epoch, ids, all_views(views)) for epoch, ids, views in made], output / name / f"views-{local_rank()}"
        )
    with StopSignal() as stop:
        shop = Workshop(settings, make_data(settings), None, stop)
        predictions = predict_student(shop, student, "val")
        probe, _ = linear_probe(shop)
    if local_rank() == 0:
        torch.save([predictions.ids, predictions.labels, predictions.logits, probe.weight], output / "predictions.pt")
