"""A small JAX trainer for MNIST-sized digit classification."""
