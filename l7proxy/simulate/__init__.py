"""Answers without a node: what would this cluster do with that connection or request?

cluster        a cluster of manifests (or of an agent's resources): each node's view and compiled policies
trace          one question through the same door as enforcement (policy.decide), explained
policy_tests   questions with expected answers, from YAML files

Not here: live state, kernel tables, printing. The agent and the command line ask; nothing below does.
"""
