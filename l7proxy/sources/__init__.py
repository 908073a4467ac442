"""Reads resources from a source: at present from manifest files.

files, inotify        watch a directory, and keep the last good version of objects in broken files
manifests, objects    parse documents into resources; fields, yaml_lines: with the line of every error

Not here: relations between resources (cluster), parsing of policies (policy.lang).
"""
