"""Per-layer probers."""
