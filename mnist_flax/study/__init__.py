"""Many runs compared: a recipe and its variants, each trained from several seeds.

It sits on top of the trainer, and nothing imports it: delete this room and training still works.
"""
