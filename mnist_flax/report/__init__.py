"""What a person sees of a run: progress in the terminal, pictures, and Weights & Biases.

Everything here takes NumPy arrays and plain numbers and knows no JAX.
"""
