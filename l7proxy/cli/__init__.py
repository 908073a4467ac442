"""The command line. One module per group of commands; each command imports what it needs when it runs.

Not here: decisions. A command queries the agent's socket, or calls cluster and simulate, and prints.
"""
