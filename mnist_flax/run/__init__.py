"""What makes a run durable: its folder, checkpoints and history, and the session that keeps them.

`train` uses only `session`. `fields`, the table of allowed values, also serves the command line;
`study` uses `checkpoint`, `resuming` and `workdir`.
"""
