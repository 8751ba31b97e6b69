"""One module for each DVC stage."""
