"""Cases of the architecture slots: what the contract promises, whatever the mathematics."""
