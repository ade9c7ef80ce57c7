"""Phrases: the Markdown that the simulator's answers are put together from. ``{topic}`` is the user's own words."""

OPENINGS = (
    "Happy to help with “{topic}”.\n\n",
    "Good question. Here is what matters about **{topic}**:\n\n",
    "You asked about *{topic}*, so let us take it step by step.\n\n",
    "## {topic}\n\n",
    "Bien sûr! On “{topic}” there are a few things worth knowing. 👋\n\n",
    "> {topic}\n\nShort answer: yes, with two conditions.\n\n",
    "Let me think about “{topic}” for a moment… Here we go.\n\n",
)

BLOCKS = (
    "1. Start with the smallest thing that can work.\n"
    "2. Measure it, and write the number down.\n"
    "3. Change *one* thing, then measure again.\n\n",
    "- **Cost**: about €12.50 a month, taxes included.\n"
    "- **Time**: most people are done in under 10 minutes.\n"
    "- **Risk**: low, since every step can be undone.\n\n",
    "```python\n"
    "import asyncio\n\n\n"
    "async def main() -> None:\n"
    "    async with asyncio.timeout(5.0):  # seconds\n"
    '        print("hello", 1 < 2 and 3 > 2)\n\n\n'
    "asyncio.run(main())\n"
    "```\n\n",
    "| plan | requests an hour | burst a minute |\n"
    "| --- | ---: | ---: |\n"
    "| Free | 100 | 10 |\n"
    "| Plus | 1,000 | 50 |\n"
    "| Pro | 5,000 | 100 |\n\n",
    "Zoë, José and Łukasz tried it at the café in Málaga; their naïve first version failed, the second did not. 🎉\n\n",
    "In other words: 你好 means “hello”, こんにちは does too, and so does مرحبا. The family emoji 👩‍👩‍👧‍👦 is one "
    "picture made of seven code points.\n\n",
    "If something goes wrong, look at these three places first: the log of the last hour, the status page, and the "
    "e-mail that we sent to you when you signed up.\n\n",
    "```bash\n$ curl -s https://example.com/health | grep -c '\"ok\"'\n1\n```\n\n",
    "A rule of thumb: *x* ≤ 80 % of the limit is fine, 80–95 % deserves a look, and above 95 % somebody should be "
    "called. ☎️\n\n",
    "> “Simple things should be simple, complex things should be possible.”\n\n",
    "### What to do next\n\n"
    "- [ ] Read the first page of the guide\n"
    "- [x] Ask a question (you just did ✅)\n"
    "- [ ] Tell us whether the answer helped\n\n",
    "The formula is `total = price * (1 + tax)`; with a price of 40 and a tax of 0.21 that is **48.40**. "
    "Mind the backslash in `C:\\temp\\new` and the tab\tin this sentence.\n\n",
)

CLOSINGS = (
    "Does that answer your question?",
    "Tell me more about your case, and I can be more precise. 🙂",
    "That is all there is to know about it.",
    "Shall I go deeper into one of these points?",
    "Hope that helps — à bientôt!",
)

SOURCES = (
    (
        "Refund policy.pdf",
        "application/pdf",
        "https://docs.example.com/refund-policy.pdf",
        "Refunds are paid within 14 days to the means of payment that was used for the order.",
    ),
    (
        "Terms of service",
        "text/html",
        "https://www.example.com/terms",
        "Each plan has a limit of requests an hour and a burst a minute; both are stated on the price page.",
    ),
    (
        "Employee handbook (2026)",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "https://docs.example.com/handbook.docx",
        "Holidays not taken by the end of March lapse, unless the manager has agreed to something else.",
    ),
    (
        "Preguntas frecuentes",
        "text/markdown",
        "https://docs.example.com/es/faq.md",
        "¿Cómo cambio mi contraseña? En «Ajustes», apartado «Seguridad».",
    ),
)
