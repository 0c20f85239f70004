"""Adapters that turn what people already have into executors; each imports its package alone."""
