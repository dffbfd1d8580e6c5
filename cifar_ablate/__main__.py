"""``python -m cifar_ablate``."""

from cifar_ablate.cli import main

if __name__ == "__main__":
    main()
