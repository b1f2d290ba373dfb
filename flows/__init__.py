"""What runs, in which order. One file per flow; each runs alone, too."""

import logging

# Prefect keeps what our loggers say (`logging.extra_loggers`); without a level they would say warnings alone.
if logging.getLogger("crafter_pipeline").level == logging.NOTSET:
    logging.getLogger("crafter_pipeline").setLevel(logging.INFO)
