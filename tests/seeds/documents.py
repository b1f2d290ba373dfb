"""The five workflow documents, in the order in which they are followed."""

from __future__ import annotations

from tests.seeds import blog_playbook, readme_crafter, rl_workflow, sft_readme, workflow_overview

DOCUMENTS = (
    readme_crafter.DOCUMENT,
    blog_playbook.DOCUMENT,
    workflow_overview.DOCUMENT,
    sft_readme.DOCUMENT,
    rl_workflow.DOCUMENT,
)
