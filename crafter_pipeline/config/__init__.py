"""Every TOML file's model: small, frozen, strict about names, a sentence under each field.

Secrets and addresses of this machine belong to `settings.py`; everything that decides a result belongs here.
"""

from crafter_pipeline.config.base import (
    DEV_SEEDS_START,
    GATE_SEEDS_START,
    HELD_OUT_SEEDS_START,
    SPLIT_STARTS,
    TRAIN_SEEDS_END,
    Config,
    SeedRange,
    Split,
    digest_of,
    one_split,
    refuse_held_out,
    split_of,
)
from crafter_pipeline.config.data import (
    ExportConfig,
    FilterConfig,
    TurnRules,
)
from crafter_pipeline.config.nightly import (
    NightlyConfig,
)
from crafter_pipeline.config.pipeline import (
    PipelineConfig,
)
from crafter_pipeline.config.play import (
    MLP_POLICY,
    SPREAD,
    CollectConfig,
    EvaluateConfig,
    HistoryForm,
    Observation,
    PolicyConfig,
    ReasoningEffort,
    StopOn,
    TaskRunner,
    ThinkingMode,
    ToolChoice,
    own_form,
)
from crafter_pipeline.config.promotion import (
    PromotionConfig,
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
from crafter_pipeline.config.sweep import (
    SEED_KEYS,
    RepeatConfig,
    SweepConfig,
    SweepEvaluation,
    SweepRun,
    Training,
)
from crafter_pipeline.config.training import (
    ComputeConfig,
    CurriculumConfig,
    DaggerConfig,
    DevEpisodes,
    DevSeeds,
    JudgeConfig,
    RewardBlend,
    RlComputeConfig,
    RlConfig,
    SftConfig,
    Tracker,
    TrainingConfig,
    TrainKind,
)

__all__ = [
    "BackendConfig",
    "CollectConfig",
    "ComputeConfig",
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
    "MLP_POLICY",
    "NightlyConfig",
    "Observation",
    "PipelineConfig",
    "PolicyConfig",
    "PromotionConfig",
    "ReasoningEffort",
    "RepeatConfig",
    "RewardBlend",
    "RlComputeConfig",
    "RlConfig",
    "SEED_KEYS",
    "SPLIT_STARTS",
    "SPREAD",
    "SeedRange",
    "SftConfig",
    "Split",
    "StopOn",
    "SweepConfig",
    "SweepEvaluation",
    "SweepRun",
    "TRAIN_SEEDS_END",
    "TaskAppConfig",
    "TaskRunner",
    "ThinkingMode",
    "ToolChoice",
    "Tracker",
    "TrainKind",
    "Training",
    "TrainingConfig",
    "TurnRules",
    "apply_overrides",
    "digest_of",
    "load_config",
    "load_toml",
    "one_split",
    "own_form",
    "parse_config",
    "refuse_held_out",
    "split_of",
]
