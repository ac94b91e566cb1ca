"""What makes a run durable: its folder, its checkpoints, its history, and their session.

`train` talks to `session` alone; the other modules may change freely behind it.
"""
