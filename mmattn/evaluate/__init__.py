"""From predictions to numbers: scores with intervals, tables, plots and the linear baseline.

Needs no JAX. `predictions` is what a model hands over; `metrics` scores it; `tables` and `plots`
show it; `baseline` is the linear model that a temporal one has to beat. `views` is what is shown of
a clip. `attention` and `faithfulness` measure how well attention explains; `correlation` and `cca`,
what audio and video have in common.
"""
