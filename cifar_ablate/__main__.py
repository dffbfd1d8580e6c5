"""``python -m cifar_ablate``."""

from cifar_ablate.cli import main

main()
