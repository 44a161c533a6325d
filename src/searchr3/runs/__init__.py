"""Whole runs and their folders: one run from recipe to report, evidence of many, what a run will need."""
