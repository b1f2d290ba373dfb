"""The environment server: plays episodes with chat models and keeps their traces."""
