"""Executors by name: a function from groups of runs to their results, in a file of its own."""
