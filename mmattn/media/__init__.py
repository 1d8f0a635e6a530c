"""From clips of sound and picture to feature files: download, decode, extract, align."""
