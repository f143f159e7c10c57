"""BOLD: texts that the model writes, and what scores them."""
