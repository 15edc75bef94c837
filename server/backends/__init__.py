"""Implementations of ``core.ports.Backend``."""
