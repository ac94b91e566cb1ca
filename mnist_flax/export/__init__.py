"""Trained networks for use without this project: python -m mnist_flax.export.

Each module writes one format, and is imported when that is asked for: what it needs beyond the
project's requirements is an extra. Every file computes the same, with the last or averaged weights
that the evaluation of the run uses: probabilities, float32 `[n, classes]`, of pixels in 0..255. It
computes a single view of each image in float32, whatever the run did. This room sits on top, so it
may be deleted.
"""
