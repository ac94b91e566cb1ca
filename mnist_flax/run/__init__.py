"""What makes a run durable: its folder, its checkpoints, its history, and their session.

`train` talks to `session` alone. `fields`, the table of allowed values, serves the command line
too; `study` uses `saver` and `workdir`.
"""
