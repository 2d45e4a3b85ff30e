"""Polls balance APIs and POSTs signed change events that reconcile."""

__version__ = "0.2.0"
