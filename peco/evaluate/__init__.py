"""One folder for each evaluation: `stage.py`, with its readers, models, scores and pictures next to it; `common.py` for all."""
