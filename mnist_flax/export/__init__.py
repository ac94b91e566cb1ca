"""Exports trained networks for use without this project: python -m mnist_flax.export.

Each module writes one format and is imported only if that format is requested; the packages that it
needs are an extra of this project. All formats compute the same: probabilities, float32
`[n, classes]`, from pixels in 0..255, with the weights that the run's evaluation uses, which are
the last or the averaged ones. They use a single view of each image and compute in float32, whatever
the run did. Nothing imports this folder, so you can delete it.
"""
