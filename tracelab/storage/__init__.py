"""Files and folders: written whole, owned, locked, and the one way to resume."""
