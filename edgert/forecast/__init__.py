"""What a model will take: memory and time, before it runs, on this machine or on another.

`work`       what a step of a graph does, in bytes and operations, from its lowered instructions
`cards`      the same for a model that is not there yet, from its sizes
`rates`      what a device does in a second: probed, or from its data sheet
`latency`    seconds of a token and of a prompt: work over rates
`pictures`   seconds of a picture: its pieces, each as often as it is run
`starting`   seconds until a model is loaded, and until its first token
`memory`     bytes of a process: weights, keys and values, arena, the rest

`inspect`, `test --predict` and `plan` all ask here.
"""
