"""Recipes: the TOML files of single steps, `eval --config` and `train --config`, in the published schemas.

A profile (`crafter_pipeline.config`) is the whole loop in our own words; a recipe is one step in the words of the
workflow documents. It is read strictly: a key that nobody knows is an error that names the nearest one.
"""
