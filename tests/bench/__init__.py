"""Benchmarks of the gateway against a simulated Hyperleap, every part a process of its own. See README.md."""
