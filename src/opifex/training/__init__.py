"""Training: the compiled loop, adaptive sampling and multilevel strategies."""
