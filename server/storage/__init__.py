"""The SQLite database: its schema, its connections, its queries, the import of v0.2.

Imports the root modules only. Everything that is stored is written through here.
"""
