"""The only door to MLflow: upload run folders, find and load what is recorded."""

from cifar_ablate.tracking.store import Tracking, existing, is_empty, noted
from cifar_ablate.tracking.writer import MlflowWriter, PendingUpload

__all__ = ["MlflowWriter", "PendingUpload", "Tracking", "existing", "is_empty", "noted"]
