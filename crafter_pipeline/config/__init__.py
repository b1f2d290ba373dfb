"""Every TOML file's model: small, frozen, strict about names, a sentence under each field.

Secrets and addresses of this machine belong to `settings.py`; everything that decides a result belongs here.
"""

from crafter_pipeline.config.base import (
    DEV_SEEDS_START,
    GATE_SEEDS_START,
    HELD_OUT_SEEDS_START,
    TRAIN_SEEDS_END,
    Config,
    SeedRange,
    digest_of,
    refuse_held_out,
)
from crafter_pipeline.config.data import (
    ExportConfig,
    FilterConfig,
    TurnRules,
)
from crafter_pipeline.config.pipeline import (
    PipelineConfig,
)
from crafter_pipeline.config.play import (
    CollectConfig,
    EvaluateConfig,
    HistoryForm,
    Observation,
    PolicyConfig,
    ReasoningEffort,
    StopOn,
    ThinkingMode,
    ToolChoice,
)
from crafter_pipeline.config.reading import (
    apply_overrides,
    load_config,
    load_toml,
    parse_config,
)
from crafter_pipeline.config.services import (
    BackendConfig,
    TaskAppConfig,
)
from crafter_pipeline.config.training import (
    CurriculumConfig,
    DaggerConfig,
    DevEpisodes,
    DevSeeds,
    JudgeConfig,
    RewardBlend,
    RlConfig,
    SftConfig,
    Tracker,
    TrainingConfig,
    TrainKind,
)

__all__ = [
    "BackendConfig",
    "CollectConfig",
    "Config",
    "CurriculumConfig",
    "DEV_SEEDS_START",
    "DaggerConfig",
    "DevEpisodes",
    "DevSeeds",
    "EvaluateConfig",
    "ExportConfig",
    "FilterConfig",
    "GATE_SEEDS_START",
    "HELD_OUT_SEEDS_START",
    "HistoryForm",
    "JudgeConfig",
    "Observation",
    "PipelineConfig",
    "PolicyConfig",
    "ReasoningEffort",
    "RewardBlend",
    "RlConfig",
    "SeedRange",
    "SftConfig",
    "StopOn",
    "TRAIN_SEEDS_END",
    "TaskAppConfig",
    "ThinkingMode",
    "ToolChoice",
    "Tracker",
    "TrainKind",
    "TrainingConfig",
    "TurnRules",
    "apply_overrides",
    "digest_of",
    "load_config",
    "load_toml",
    "parse_config",
    "refuse_held_out",
]
