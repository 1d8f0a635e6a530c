"""The report of a run or of a study: one HTML file that works offline."""
