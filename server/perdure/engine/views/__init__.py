"""What people and programs look at: lists, figures and details, read out of the tables that other modules own.

Nothing here changes a row. Every statement has a limit and reads ranges of an index: `tests/engine/test_plans.py`
holds the plans, for tables of any size.
"""
