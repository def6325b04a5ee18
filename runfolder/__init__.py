"""The folder of one run: its lock, levels, states, results and pictures."""
