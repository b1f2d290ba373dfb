"""Rubrics, and judges that score an episode by them: `rubric`, `review`, `programmatic`, `model`, `plugin`."""
