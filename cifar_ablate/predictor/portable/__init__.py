"""What a packaged network needs to run anywhere: numpy, Pillow and onnxruntime, and nothing of the rest of the program.

``cifar-ablate package`` copies these files as they are.
"""
