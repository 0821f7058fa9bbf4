"""Benchmarks of a whole server over HTTP, of the checkpointer alone, and of what a growing thread costs."""
