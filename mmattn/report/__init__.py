"""The page of a run or of a study: one HTML file that is read offline."""
