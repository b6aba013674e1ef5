"""What worker processes are copied from: all is imported, and the garbage collector leaves it alone, so that its memory stays shared."""

import gc

import kdsearch.workers  # noqa: F401 - what they need is what this imports

gc.collect()
gc.freeze()
