"""jaxgen: generative recurrent networks in JAX and Flax."""
