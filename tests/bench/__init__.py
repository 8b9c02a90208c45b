"""Tests of the benchmark: it must not lie, and it must not fall over on the machine it is needed on."""
