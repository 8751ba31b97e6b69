"""Evaluation by nearest neighbours."""
