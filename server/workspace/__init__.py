"""The files of a session's folder: listing, reading, writing and archives.

Agents may change the folder at any moment, so every path is opened folder by folder, without links.
"""
