"""Units of retry, cache and observation. The core knows how; a task says what is tried again."""
