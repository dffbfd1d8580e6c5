"""Data sets: one file per source, with the same canonical order and digest for all."""

from cifar_ablate.data.load import data_root, load_data
from cifar_ablate.data.types import DataSet

__all__ = ["DataSet", "data_root", "load_data"]
