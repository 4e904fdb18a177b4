"""Tests of `structured`; the runs they share import as ``tests.structured.runs``."""
