"""Bundles that chance or a person changed: none may run code, pass for the edit it is not, or end
in a raw error."""
