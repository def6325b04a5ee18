"""Configuration, files, logs, optimizers: the bottom layer, which imports none of the others."""
