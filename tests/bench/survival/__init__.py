"""Faults between browsers and Hyperleap, struck at real processes, and what readers and the ledger then hold."""
