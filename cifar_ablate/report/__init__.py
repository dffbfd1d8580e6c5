"""From records to a report: numbers first (build.py), then a format."""
