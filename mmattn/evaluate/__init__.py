"""From predictions to numbers: scores with intervals, tables, plots and the linear baseline.

Needs no JAX. `predictions` is what a model hands over; `metrics` scores it; `report` and `plots`
show it; `baseline` is the linear model that a temporal one has to beat.
"""
