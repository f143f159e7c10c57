"""KLAAD: attention alignment."""
