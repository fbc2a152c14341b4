"""Which model, bits and compression will meet a budget on a device, before anything is converted.

    plan = prescribe(load("jetson-orin-nano-8gb"), Workload(tok_budget_s=0.04), SMOLLM2)
    print(plan.choice)

`cards`      models by their sizes; `candidates`: what can be made of them
`quality`    the score that a candidate will reach, with draws of what is not known
`decide`     `prescribe`: choice, Pareto set, binding constraint and its price, what to measure next
`drawings`   pictures: what can be asked of a model that draws; `pictures`: `prescribe_pictures`
`page`       a plan as Markdown and as a picture

Memory and time are `edgert.forecast`'s, as for `edgert inspect` and `edgert test --predict`.
"""
