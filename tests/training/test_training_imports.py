"""What a run's imports leave out, since it would take seconds of every start."""

import subprocess
import sys
import textwrap

import pytest


@pytest.mark.slow
def test_a_step_imports_no_lightning_and_a_run_not_the_whole_of_torchmetrics() -> None:
    """Who wants more of torchmetrics gets it, with the very classes that Lightning knows."""
    code = textwrap.dedent("""
        import sys
        import distill
        distill.DistillationStep, distill.create_step
        loaded = [name for name in sys.modules if name.startswith("lightning")]
        assert not loaded, loaded
        assert "torch" in sys.modules
        import distill.run.runner, distill.stages.train_student
        assert "lightning.pytorch" in sys.modules
        slow = [name for name in ("scipy.signal", "transformers", "torchmetrics.classification") if name in sys.modules]
        assert not slow, slow
        import torchmetrics
        from lightning.pytorch.core.module import Metric
        assert issubclass(torchmetrics.Accuracy, Metric) and torchmetrics.Metric is Metric
        assert torchmetrics.functional.accuracy and torchmetrics.__version__ and "scipy.signal" in sys.modules
    """)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
