"""The command line: recipes, flags, the table of allowed values, and one-line errors.

A new configuration field gets a row in `fields`; nothing else here needs to know it.
"""
