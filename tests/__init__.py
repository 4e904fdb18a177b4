"""Tests of both packages; their shared problems import as ``tests.bilevel.problems``."""
