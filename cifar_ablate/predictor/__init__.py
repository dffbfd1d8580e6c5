"""Trained arms in people's hands: promoted, asked for predictions, served on a page, packaged.

>>> from cifar_ablate.predictor import load
>>> load("onecycle@champion")("frog.jpg").label
'frog'
"""

from cifar_ablate.predictor.card import Card
from cifar_ablate.predictor.load import load
from cifar_ablate.predictor.network import Predictor
from cifar_ablate.portable.answers import Answer

__all__ = ["Answer", "Card", "Predictor", "load"]
