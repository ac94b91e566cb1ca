"""A trained run, loaded and used:

    from mnist_flax import predict

    classifier = predict.load("runs/1")
    probabilities = classifier(images)  # uint8 [n, 28, 28] -> float32 [n, classes]

It needs the folder of the run and nothing else: no training data, no W&B, and not the machine that
trained it. It sits on top, and only `export` imports it.
"""

from mnist_flax.predict.classifier import Classifier, load

__all__ = ["Classifier", "load"]
