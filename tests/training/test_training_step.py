"""The pure step stands without Lightning."""

import subprocess
import sys


def test_the_step_imports_no_lightning() -> None:
    code = "import sys, distill.training.step; sys.exit(any(name.startswith('lightning') for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)
