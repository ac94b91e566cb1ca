"""The machine: its devices, hosts, signals, threads and files, and how XLA compiles for it.

Nothing here knows which network is trained, or how.
"""
