"""Imported by the warm server: the workers of its children are forked, as in any process on Linux.

Otherwise multiprocessing would have a child start a further server, in which every worker imports everything again: ten
seconds for each loader that is opened.
"""

from multiprocessing import context

context._force_start_method = lambda method: None  # type: ignore[attr-defined]
