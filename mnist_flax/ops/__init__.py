"""What is written for speed alone: replacements for operations that XLA does slowly somewhere.

Each computes what the operation it replaces computes, to float rounding, so any of them may be
deleted and the library's own used instead. Only `model` and `augment` import this room.
"""
