"""Masked image modelling: block-wise masks, the backbone with mask token and head, model folders."""
