"""A conversation in a terminal, held with a gateway that runs somewhere: the command ``chat``."""
