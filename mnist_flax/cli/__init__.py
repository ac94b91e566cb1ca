"""The command line: recipes, flags, and one-line errors.

The allowed values of a configuration are in `run.fields`, which also checks runs that are
started without a command line.
"""
