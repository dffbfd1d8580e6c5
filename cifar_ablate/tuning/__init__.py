"""The only door to Optuna: trials are proposed here, and trained by the same runner as runs."""
