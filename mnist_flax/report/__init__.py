"""Shows a run to people: progress in the terminal, figures, the report page, and W&B.

Everything here takes NumPy arrays and plain numbers; nothing imports JAX.
"""
