"""The report of a run: figures, charts, sections, and the template of the page."""
