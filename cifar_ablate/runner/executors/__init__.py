"""Executors, one file each, found by name: ``--executor NAME``."""
