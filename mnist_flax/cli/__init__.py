"""The command line: recipes, flags, and one-line errors.

The allowed values of a configuration are in `run.fields`, where runs without a command line are
checked too.
"""
