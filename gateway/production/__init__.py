"""What is unsafe or missing where the gateway serves real users: ``hyperleap-gateway check --production``."""
