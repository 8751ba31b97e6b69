"""Grids of DVC experiments: planning, running, tables and pages."""
