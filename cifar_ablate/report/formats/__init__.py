"""Report formats by name: a function from a Report to text, in a file of its own."""
