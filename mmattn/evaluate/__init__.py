"""From predictions to numbers: scores with intervals, tables, plots and linear baselines.

Needs no JAX. `predictions` is what a model hands over; `metrics` scores it; `tables` and `plots`
show it; `baseline` has the linear models that a temporal one has to beat. `views` is what is shown
of a clip. `attention` and `faithfulness` measure how well attention explains; `correlation` and
`cca`, what audio and video have in common.
"""
