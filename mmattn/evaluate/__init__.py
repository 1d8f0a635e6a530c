"""From predictions to numbers: scores with intervals, tables, plots and linear baselines.

Needs no JAX. `predictions` holds a model's output; `metrics` scores it; `tables` and `plots` show
it; `baseline` has the linear models that a temporal model must beat. `views` holds what is shown of
a clip. `attention` and `faithfulness` measure how well attention explains; `correlation` and `cca`
measure what audio and video have in common.
"""
