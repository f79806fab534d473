"""Cases of the kernel slots: agreement with a float64 reference."""
