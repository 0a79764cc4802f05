"""Tests that run beside each other (``pytest -n``) take one thread each: threads that wait for a core cost far more."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
