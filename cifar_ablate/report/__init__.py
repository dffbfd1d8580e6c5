"""From records to numbers (build.py), from numbers to blocks (document.py), from blocks to a format (formats/)."""
