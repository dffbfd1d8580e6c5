"""What is recorded: the run folder (the truth), MLflow (store and writer), and the compact record."""
