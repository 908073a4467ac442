"""Evaluates policies without a node: what would a cluster do with a given connection or request?

cluster        a cluster from manifests (or from an agent's resources): each node's view and compiled policies
trace          evaluates one connection or request like enforcement (by policy.decide), and explains the verdict
policy_tests   test cases with expected verdicts, from YAML files

Not here: live state, kernel tables, printing. Used by the agent and the command line only.
"""
