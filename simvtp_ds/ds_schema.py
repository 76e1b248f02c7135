"""Which keys DeepSpeed reads, at every depth, and what may stand there.

DeepSpeed ignores most keys that it does not know. The schema is gathered from its own code, so that it follows the
installed version: pydantic models give their fields and aliases, tables of defaults their keys, constructors their
arguments. Only what DeepSpeed reads key by key is listed here, spelt by DeepSpeed's constants.

DeepSpeed is imported inside the functions: it takes seconds, and `--help` should not wait for it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args


@dataclass(frozen=True)
class Value:
    """A key with one value: the words for what is expected, and the test for it."""

    expected: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True)
class Section:
    """An object: its keys, and DeepSpeed's pydantic model where there is one (it checks the values)."""

    keys: Mapping[str, Value | Section]
    model: type | None = None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_beta(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


ANYTHING = Value("anything", lambda _: True)
SWITCH = Value("true or false", lambda value: isinstance(value, bool))
TEXT = Value("a string", lambda value: isinstance(value, str))
TEXT_OR_NULL = Value("a string or null", lambda value: value is None or isinstance(value, str))
NUMBER = Value("a number", _is_number)
NOT_NEGATIVE = Value("a number of 0 or more", lambda value: _is_number(value) and value >= 0)
POSITIVE = Value("a number above 0", lambda value: _is_number(value) and value > 0)
COUNT = Value("a whole number of 1 or more", lambda value: _is_number(value) and isinstance(value, int) and value >= 1)
COUNT_OR_NULL = Value("a whole number of 1 or more, or null", lambda value: value is None or COUNT.accepts(value))
BETAS = Value(
    "two numbers from 0 up to, not including, 1, such as [0.9, 0.95]",
    lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_beta, value)),
)


def _of_model(model: Any) -> Section:
    """The section that a DeepSpeed pydantic model describes; nested models become nested sections."""
    keys: dict[str, Value | Section] = {}
    kinds = {bool: SWITCH, int: NUMBER, float: NUMBER}  # pydantic alone would accept "true" and "1e-3" as well
    for name, field in model.model_fields.items():
        nested = [kind for kind in (field.annotation, *get_args(field.annotation)) if hasattr(kind, "model_fields")]
        keys[name] = _of_model(nested[0]) if nested else kinds.get(field.annotation, ANYTHING)
        if field.alias:
            keys[field.alias] = keys[name]
    return Section(keys, model)


def _of_defaults(defaults: Mapping[str, Any]) -> Section:
    """The section whose keys have these default values; a default also says what kind of value is expected."""
    kinds = {bool: SWITCH, int: NUMBER, float: NUMBER, str: TEXT}
    return Section({key: kinds.get(type(value), ANYTHING) for key, value in defaults.items()})


def optimizer_params(torch_adam: bool, adam_w: bool, offloaded: bool) -> Section:
    """`optimizer.params` of the implementation that DeepSpeed would choose: torch's, its CPU Adam or its fused Adam."""
    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    if torch_adam:
        chosen = torch.optim.AdamW if adam_w else torch.optim.Adam
    else:
        chosen = DeepSpeedCPUAdam if offloaded else FusedAdam
    # DeepSpeed passes on `adamw_mode` itself, so a JSON that has it too fails.
    own = set(inspect.signature(chosen.__init__).parameters) - {"self", "params", "model_params", "adamw_mode"}
    known = {"lr": POSITIVE, "betas": BETAS, "eps": POSITIVE, "weight_decay": NOT_NEGATIVE}
    switches = ("torch_adam", "adam_w_mode", "fp32_optimizer_states", "bias_correction", "amsgrad")
    known |= dict.fromkeys(switches, SWITCH)
    taken_out = {"torch_adam", "adam_w_mode", "fp32_optimizer_states"}  # by DeepSpeed, before the constructor
    return Section({key: known.get(key, ANYTHING) for key in sorted(own | taken_out)})


@lru_cache(maxsize=1)
def removed_keys() -> dict[str, str]:
    """Paths of keys that DeepSpeed used to know, with its own words on why they are gone."""
    from deepspeed.runtime import config

    top = config._REMOVED_TOP_LEVEL_CONFIG_KEYS
    return top | {f"zero_optimization.{key}": why for key, why in config._REMOVED_ZERO_CONFIG_KEYS.items()}


@lru_cache(maxsize=1)
def deepspeed_schema() -> Section:
    """The whole file. `optimizer.params` stays open here: its keys depend on the optimizer, see `optimizer_params`."""
    from deepspeed.autotuning.config import DeepSpeedAutotuningConfig
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.monitor.config import get_monitor_config
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
    from deepspeed.runtime import constants as c
    from deepspeed.runtime.activation_checkpointing.config import ACT_CHKPT, ACT_CHKPT_DEFAULT
    from deepspeed.runtime.model_checkpointing import constants as k
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.swap_tensor.aio_config import AIO, AIO_DEFAULT_DICT
    from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION, DeepSpeedZeroConfig
    from deepspeed.utils.config import TIMERS, TIMERS_THROUGHPUT, DeepSpeedThroughputTimerConfig

    def all_of(value: Value, names: Iterable[str]) -> dict[str, Value | Section]:
        return dict.fromkeys(names, value)

    writer = {
        k.CHECKPOINT_WRITER_TYPE: TEXT,
        k.CHECKPOINT_DATA_PARALLEL: TEXT_OR_NULL,
        **all_of(NUMBER, (k.CHECKPOINT_IO_BUFFER_SIZE, k.CHECKPOINT_IO_MULTIPLIER)),
        **all_of(SWITCH, (k.CHECKPOINT_IO_BUFFER_DOUBLE, k.CHECKPOINT_IO_STATISTICS, k.CHECKPOINT_WRITER_DECOUPLED)),
    }
    checkpoint = {
        c.CHECKPOINT_TAG_VALIDATION: TEXT,
        c.CHECKPOINT_PARALLEL_WRITE: Section({c.CHECKPOINT_PARALLEL_WRITE_PIPELINE_STAGE: SWITCH}),
        k.CHECKPOINT_WRITER: Section(writer),
        **all_of(
            SWITCH, (c.LOAD_UNIVERSAL_CHECKPOINT, c.USE_NODE_LOCAL_STORAGE_CHECKPOINT, k.CHECKPOINT_SERIALIZATION)
        ),
    }
    data_types = {
        **all_of(TEXT_OR_NULL, (c.GRAD_ACCUM_DTYPE, c.PARAM_DTYPE, c.BUFFER_DTYPE)),
        c.KEEP_IN_FP32_MODULES: Value(
            '"auto" or a list of name patterns', lambda value: value == "auto" or isinstance(value, list)
        ),
    }
    switches = (
        *(c.MANAGED_GRADIENT_ACCUMULATION, c.ZERO_ALLOW_UNTESTED_OPTIMIZER, c.ZERO_FORCE_DS_CPU_OPTIMIZER),
        *(c.PRESCALE_GRADIENTS, c.DISABLE_ALLGATHER, c.DUMP_STATE, c.DISABLE_PYTHON_GC, c.WALL_CLOCK_BREAKDOWN),
        *(c.MEMORY_BREAKDOWN, c.DATALOADER_DROP_LAST, c.USE_DATA_BEFORE_EXPERT_PARALLEL),
    )
    monitors = _of_model(type(get_monitor_config({}))).keys
    return Section(
        {
            **all_of(COUNT, (c.TRAIN_BATCH_SIZE, c.TRAIN_MICRO_BATCH_SIZE_PER_GPU, c.GRADIENT_ACCUMULATION_STEPS)),
            **all_of(COUNT_OR_NULL, (c.STEPS_PER_PRINT, c.VOCABULARY_SIZE)),
            **all_of(SWITCH, switches),
            **all_of(TEXT_OR_NULL, (c.COMMUNICATION_DATA_TYPE, c.SEQ_PARALLEL_COMMUNICATION_DATA_TYPE, c.LOG_LEVEL)),
            c.GRADIENT_ALLREDUCE_OP: TEXT,
            c.GRADIENT_CLIPPING: NOT_NEGATIVE,
            c.GRADIENT_PREDIVIDE_FACTOR: POSITIVE,
            c.OPTIMIZER: Section({c.TYPE: TEXT, c.OPTIMIZER_PARAMS: ANYTHING, c.LEGACY_FUSION: SWITCH}),
            c.FP16: _of_model(DeepSpeedFP16Config),
            c.BFLOAT16: _of_model(DeepSpeedBF16Config),
            c.BFLOAT16_OLD: _of_model(DeepSpeedBF16Config),
            ZERO_OPTIMIZATION: _of_model(DeepSpeedZeroConfig),
            ACT_CHKPT: _of_defaults(ACT_CHKPT_DEFAULT),
            AIO: _of_defaults(AIO_DEFAULT_DICT),
            c.CHECKPOINT: Section(checkpoint),
            c.DATA_TYPES: Section(data_types),
            TIMERS: Section({TIMERS_THROUGHPUT: _of_model(DeepSpeedThroughputTimerConfig)}),
            **{name: section for name, section in monitors.items() if isinstance(section, Section)},
            "autotuning": _of_defaults(vars(DeepSpeedAutotuningConfig({}))),
            "flops_profiler": _of_defaults(vars(DeepSpeedFlopsProfilerConfig({}))),
            "comms_logger": _of_model(CommsLoggerConfig),
            "compile": _of_model(CompileConfig),
            "datastates_ckpt": ANYTHING,
        }
    )
