"""Studies: the same training under many arms, measured alike, compared with intervals."""
