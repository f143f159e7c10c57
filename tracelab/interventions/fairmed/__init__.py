"""FairMed: the neutraliser of MLP activations."""
