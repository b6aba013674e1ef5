"""A trial of controller_synetune.py: reports at the last rung and ends."""

import random

from syne_tune import Reporter

if __name__ == "__main__":
    Reporter()(rung=3, error=random.random(), log_latency=random.random())
