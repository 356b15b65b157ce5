"""Measure the memory and the time of each method, and write what the prose shows of it."""
