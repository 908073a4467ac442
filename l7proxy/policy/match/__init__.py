"""HTTP rules against requests, by RE2.

pattern   what a pattern may be, and many patterns against one text at one price
headers   one header against what a rule demands of it, and what is changed when it differs
http      the rules of one flow against one request: the first that matches, or the one that came nearest
"""
