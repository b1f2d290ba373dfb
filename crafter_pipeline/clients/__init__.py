"""Clients of what we reach over HTTP: task app, training backend, chat models."""
