"""One or many checkpoints: which ones, where outputs go, and one failing file that does not stop the others."""
