"""Anomaly detection from normal images alone, one method a file; see :mod:`distill.transfer.anomaly.base`."""
