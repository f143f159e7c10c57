"""Edits beside each other: cells, costs, interference."""
