"""The words themselves, one file each. Imports langgraph and langchain-core, nothing of the engine.

A word meets the engine in plain data only: the journal object in the run's config (`journal.py`), the
attributes `retryable`, `retry_after`, `suspends` and `cancels` on an exception, and the JSON value of an
interrupt.
"""
