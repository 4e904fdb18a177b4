"""Tests of ``bilevel``."""
