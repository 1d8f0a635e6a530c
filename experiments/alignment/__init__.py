"""Studies: the same training in many arms, with the same measures, compared with intervals."""
