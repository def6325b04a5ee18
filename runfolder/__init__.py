"""The folder of one run: its identity, lock, levels, states, results and pictures."""
