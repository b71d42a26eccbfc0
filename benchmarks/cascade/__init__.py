"""Does one service that stalls or drowns take its callers along? Measured in virtual time.

    make cascade                                   all, into benchmarks/results/cascade.json
    python -m benchmarks.cascade --only SCENARIO   one, by the name that the table gives

`shape` says which services call which, `catalogue` which scenarios there are; `system` makes the
services of the shipped modules with nothing configured, `experiment` runs one scenario, and
`claims` compares what it measured with what was possible; `judging` does so side by side.
"""
