"""Imported last by the warm server: the garbage collector of its children leaves alone what was imported before.

A collection would look at a million objects, and copy each of their pages, which a child shares with the server.
"""

import gc

gc.collect()
gc.freeze()
