"""Hard negatives: what a retriever ranks high for a query, without what is likely to be right."""

from searchr3.mining.figures import mining_table
from searchr3.mining.mining import mine, training_splits
from searchr3.mining.scorers import Teacher
from searchr3.mining.selection import Rule, ceiling, select
from searchr3.mining.work import Work

__all__ = ["Rule", "Teacher", "Work", "ceiling", "mine", "mining_table", "select", "training_splits"]
