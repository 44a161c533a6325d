"""Retrieval data sets: one type, and readers for BEIR folders, triples, the Hub and installed Python code."""

from searchr3.dataset.readers import load_dataset
from searchr3.dataset.types import Document, Eligible, Qrels, Query, RetrievalDataset

__all__ = ["Document", "Eligible", "Qrels", "Query", "RetrievalDataset", "load_dataset"]
