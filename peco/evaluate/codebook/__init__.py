"""Evaluation of the codebook: use of the codes, reconstructions, information about classes."""
