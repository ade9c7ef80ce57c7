"""The OpenAI door: chat completions, responses and models, for clients that change their base URL and nothing else."""
