"""Hot loops by operation. Each is a numba kernel with a numpy twin that gives the same bytes."""
