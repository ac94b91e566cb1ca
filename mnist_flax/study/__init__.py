"""Studies: compares a recipe with its variants, each trained from several seeds.

Nothing imports this folder, so you can delete it and training still works.
"""
