"""Models that run: what they do after compression, and smaller ones that learn from them. Only here is torch run."""
