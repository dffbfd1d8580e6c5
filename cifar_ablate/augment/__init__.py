"""Augmentations: one file per stage (geometry, erasing, mixing), and the pipeline that applies them."""
