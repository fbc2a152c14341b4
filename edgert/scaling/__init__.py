"""Which score is attainable with a compute budget, what compression costs, what to measure next.

`frontier`       conditional quantiles of scores over compute: `fit_frontier`
`classes`        the other classes that a frontier is compared with
`evaluate`       coverage, pinball loss, drift over time: `evaluate_frontier`
`design`         which models to evaluate with a budget: `design_evaluations`
`contamination`  whether newer models score higher than they should: `probe_contamination`
`laws`           loss by parameters, tokens, bits and compression, with fitting
`table`          tables of scores as CSV files
`fits`           fitted frontiers as JSON files

Source: Prescriptive Scaling, arXiv 2602.15327; others are named beside what follows them.
"""
