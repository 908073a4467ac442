"""Gates: pure state machines that enforce policy on one connection's bytes. Bytes in, actions out.

A gate has no socket, clock or logger: it returns actions for the session (actions.py). One gate serves one client
connection and ends with it.
"""
