"""``compile=True``: hypergradients by machine code, and what a program takes for granted."""
