"""The machine that the student will run on: its runtime, latency as its user would feel it, and the memory it takes."""
