"""Code written only for speed: replacements for operations that XLA does slowly on some platform.

Each computes the same as the operation it replaces, up to float rounding, so any of them can be
deleted and the library's own used instead. Only `model` and `augment` import this folder.
"""
