"""What trains an intervention: the loop, fine-tuning, triples and their losses."""
