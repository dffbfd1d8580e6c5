"""``python -m cifar_ablate.cli``."""

from cifar_ablate.cli import main

if __name__ == "__main__":
    main()
