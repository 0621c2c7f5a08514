"""Templates for CPUs, one module per operator, and the vector vocabulary they share."""
