"""Report formats: one file for each, with a registered function from a `Report` to text."""
