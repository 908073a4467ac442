"""What the user types and reads. One module per group of commands; each imports what it needs when it runs.

Not here: decisions. A command asks the agent's socket, or cluster and simulate, and prints.
"""
