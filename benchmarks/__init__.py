"""Timings as ratios: one command each, a table, and a last line `RESULT {json}`."""
