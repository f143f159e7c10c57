"""BiasEdit: editor networks that make weight deltas of triples."""
