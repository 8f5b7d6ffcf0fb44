"""Training: the loop, its two kinds of stage, and what they stand on."""
