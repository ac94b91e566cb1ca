"""The machine: its devices, hosts, signals, threads and files, and how XLA is told to compile.

Nothing here knows what network is trained, or how.
"""
