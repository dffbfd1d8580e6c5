"""Groups of runs, trained where an executor decides."""
