"""The database: its schema, its connections, its queries, its writer, the import of v0.2.

Imports `storage.drivers` and the root modules. Everything that is stored is written through here.
"""
