"""Code that runs without the rest of the program: it needs numpy, Pillow, and onnxruntime or gradio where used.

``cifar-ablate package`` copies this folder as it is, so its files import only each other, by relative imports.
"""
