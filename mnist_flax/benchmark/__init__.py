"""Measurements of training and evaluation, alone or against PyTorch, and a TPU's compiler on both.

It sits on top of the trainer, and nothing imports it: delete this room and training still works.
"""
