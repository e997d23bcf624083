"""The contract suite, fakes and the simulated cluster."""
