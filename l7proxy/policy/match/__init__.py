"""Matches HTTP rules against requests, by RE2.

pattern   checks patterns, and matches many patterns against one text at constant cost
headers   one header against the requirement of a rule, and the change on a mismatch
http      the rules of one flow against one request: the first that matches, or the one that came nearest
"""
