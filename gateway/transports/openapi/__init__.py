"""The description of the public API (OpenAPI 3.1): one module of entries a door, put together into one document."""
