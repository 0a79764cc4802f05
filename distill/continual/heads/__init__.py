"""Closed-form classifiers of features, fitted from sums."""
