"""Networks: one file for each of our own families, every architecture of timm by its name, and what builds them."""
