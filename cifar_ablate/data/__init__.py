"""Images and labels: one file per source, one order and one digest for all of them."""

from cifar_ablate.data.load import data_root, load_data
from cifar_ablate.data.types import DataSet

__all__ = ["DataSet", "data_root", "load_data"]
