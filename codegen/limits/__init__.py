"""How far a call reaches, and whether its kernels can count that."""
