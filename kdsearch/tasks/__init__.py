"""Datasets --> seeded splits --> tokenised, length-bucketed batches; metrics with standard errors."""
