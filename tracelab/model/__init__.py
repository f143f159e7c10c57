"""A model as tracelab sees it: loaded, hooked, run, scored, made to write."""
