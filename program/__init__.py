"""What only the entry script uses: flags, presets, the plan, run folders, checkpoints."""
