"""What `app.py` puts together: the parts of a reload that no other package owns.

Imports every package that serves.
"""
