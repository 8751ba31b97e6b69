"""Seeded mutations of everything that users hand to peco: `make fuzz`. Each must end in a result or in one line."""
