"""Mixed traffic at full speed for as long as you like, and nothing lost, leaked or counted twice.

ledger    what the client did against what the flows say: pure
flows     reads the agent's flow log from a pipe
talk      one connection of each kind of traffic, good and bad
traffic   runs them all, in the client pod
__main__  brings up the lab, edits policy, and checks
"""
