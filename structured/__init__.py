"""Structured prediction with learned energies, built on `bilevel`."""
