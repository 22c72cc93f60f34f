"""Answers a query: the model, the index, the search, recall."""
