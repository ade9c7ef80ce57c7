"""The OpenAI dialect: its requests, its answers, whole and streamed, and its errors, to and from core values."""
