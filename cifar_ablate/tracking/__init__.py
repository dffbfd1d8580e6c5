"""The only door to MLflow: deliver run folders, find and load what is recorded."""

from cifar_ablate.tracking.checkpoints import Kept
from cifar_ablate.tracking.courier import Courier
from cifar_ablate.tracking.delivery import Delivery
from cifar_ablate.tracking.ledger import noted
from cifar_ablate.tracking.parcel import Parcel
from cifar_ablate.tracking.store import Tracking, existing, is_empty

__all__ = ["Courier", "Delivery", "Kept", "Parcel", "Tracking", "existing", "is_empty", "noted"]
