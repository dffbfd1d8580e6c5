"""Networks: one file per family of ours, all architectures of timm by their names, and ``build_model``."""
