"""Training: the state, one pure step, optimizers, data parallelism, and the `Task` protocol."""
