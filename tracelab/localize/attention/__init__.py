"""Attention gaps on bias-sensitive tokens."""
