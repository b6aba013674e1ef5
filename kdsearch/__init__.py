"""Find the best distilled student of a transformer: accuracy against measured latency."""

__version__ = "0.1.0"
