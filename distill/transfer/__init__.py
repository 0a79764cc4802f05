"""What happens around the fits of transfer learning. The kinds of runs are in :mod:`distill.experiments`.

Where a method belongs: a loss is an objective, a change of the network is a delta, images are a source, and a kind of
run is a typed config whose ``plan()`` lists stages. This package holds the rest, one file for each method: functions
and frozen dataclasses that a stage calls before or after a fit. They

- get networks, loaders or features, never the config of an experiment, and know no stage;
- give tensors, a network, a path, or items of the report (:mod:`distill.report.items`);
- import ``run``, ``training``, ``export``, ``models``, ``data``, and of ``continual`` the heads in closed form; nothing
  of ``experiments`` and ``stages``.

A stage that trains calls :meth:`distill.run.fit_spec.FitSpec.fit`, so that resuming, ranks and checks are those of all
fits. A stage that evaluates gives :class:`distill.stages.outputs.EvaluatedModel` objects, which are rows of the table.
"""
