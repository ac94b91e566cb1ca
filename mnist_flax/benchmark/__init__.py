"""Measures training and evaluation, also against PyTorch, and compiles both for TPUs.

Nothing imports this folder, so you can delete it and training still works.
"""
