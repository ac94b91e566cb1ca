"""Measurements of training and evaluation, alone or against PyTorch.

It sits on top of the trainer, and nothing imports it: delete this room and training still works.
"""
