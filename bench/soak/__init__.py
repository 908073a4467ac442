"""Mixed traffic at full speed for any time; nothing may be lost, leaked or counted twice.

ledger    compares the client's requests with the flows: pure
flows     reads the agent's flow log from a pipe
talk      one connection of each kind of traffic, good and bad
traffic   runs all kinds, in the client pod
__main__  starts the lab, edits policy, and checks
"""
