"""The rules: pure functions and frozen dataclasses that say what may be done.

Nothing here opens a file, a socket or an event loop; time, keys and text come in as arguments.
"""
