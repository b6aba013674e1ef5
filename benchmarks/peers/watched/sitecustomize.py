"""Put on PYTHONPATH by the benchmark's P2: writes down the time of every optimizer step of a process, whatever trains in it.

One line a step: seconds since the epoch, process id, number of the optimizer in that process. Nothing is imported for it: the watch is
set when torch.optim is imported anyway.
"""

import importlib.abc
import os
import sys
import time

TARGET = "torch.optim.lr_scheduler"  # imported behind torch.optim.optimizer, whose hook is used


class Watch(importlib.abc.MetaPathFinder):
    """Sets the hook when the first module that needs optimizers is looked for."""

    def find_spec(self, name, path, target=None):
        """Never finds anything."""
        if name == TARGET and self in sys.meta_path:
            sys.meta_path.remove(self)
            from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: PLC0415

            known = {}

            def write(optimizer, *_):
                number = known.setdefault(optimizer, len(known))
                with open(os.environ["WATCHED_STEPS"], "a") as stream:  # noqa: PTH123
                    stream.write(f"{time.time()} {os.getpid()} {number}\n")

            register_optimizer_step_post_hook(write)


if "WATCHED_STEPS" in os.environ:
    sys.meta_path.insert(0, Watch())
