"""Use trained networks: promote them, predict with them, serve them on a page and package them.

>>> from cifar_ablate.predictor import load
>>> load("onecycle@champion")("frog.jpg").label
'frog'
"""

from cifar_ablate.portable.answers import Answer
from cifar_ablate.predictor.card import Card
from cifar_ablate.predictor.load import load
from cifar_ablate.predictor.network import Predictor

__all__ = ["Answer", "Card", "Predictor", "load"]
