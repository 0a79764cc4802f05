"""Imported last by the warm server: what its children need not do again.

The passes in C and the template of the report are compiled once. The garbage collector leaves alone what was
imported: it would look at a million objects, and copy their pages, which a child shares with the server. The server
itself leaves at its end without taking apart what is frozen.
"""

import atexit
import gc
import os

from augment.fuse.compiler import missing_compiler
from distill.models.timm_models import timm_with_own_models
from distill.report.html import page_template

page_template()
timm_with_own_models()
missing_compiler("cpu")  # two seconds of the C compiler
gc.collect()
gc.freeze()
atexit.register(os._exit, 0)
