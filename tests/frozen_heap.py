"""Imported last by the warm server: the garbage collector of its children leaves alone what was imported before.

It would look at a million objects, and copy their pages, which a child shares with the server. The server itself leaves
at its end without taking apart what is frozen.
"""

import atexit
import gc
import os

gc.collect()
gc.freeze()
atexit.register(os._exit, 0)
