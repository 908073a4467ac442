"""Settings of a node, from what the operator wrote to what components take.

read     flags, environment and file → checked settings; an error names where the wrong value was written
origin   where settings came from, to read them again when the file has changed
derived  settings → values of components (kernel, gates, cluster state)

Not here: the definitions (`l7proxy.setting_definitions`), which workers import, too.
"""
