"""A stand-in Hyperleap: the vendor's contract over HTTP/2, with faults on request and a bill that tests can read."""
