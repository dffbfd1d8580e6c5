"""cifar-ablate: does this change to the training help, by how much, and how sure are we?"""

__version__ = "0.1.0"
