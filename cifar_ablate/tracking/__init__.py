"""The only door to MLflow: deliver run folders, find and load what is recorded."""

from cifar_ablate.tracking.delivery import Delivery
from cifar_ablate.tracking.store import CURVES, Tracking, is_empty

__all__ = ["CURVES", "Delivery", "Tracking", "is_empty"]
