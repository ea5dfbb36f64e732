"""Scores on hidden positions, plain baselines in the same table, and the plots."""
