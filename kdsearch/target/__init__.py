"""The machine that the student will run on: its runtime, and latency as its user would feel it."""
