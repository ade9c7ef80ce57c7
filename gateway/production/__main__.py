"""``python -m gateway.production`` writes the page ``docs/production.md``."""

import sys

from gateway.production.checklist import reference

sys.stdout.write(reference())
