"""The public names, for type checkers and completion; adapt/__init__.py imports them from the same places, on first use."""

from adapt.comparison.comparing import Comparison as Comparison
from adapt.comparison.comparing import compare as compare
from adapt.data.packing import batches_of_one as batches_of_one
from adapt.errors import AdaptError as AdaptError
from adapt.features import encode as encode
from adapt.finetuning import finetune as finetune
from adapt.inspection import attention_maps as attention_maps
from adapt.inspection import hidden_states as hidden_states
from adapt.models import CausalLM as CausalLM
from adapt.models import Classifier as Classifier
from adapt.models import Encoder as Encoder
from adapt.models import EncoderConfig as EncoderConfig
from adapt.models import MaskedLM as MaskedLM
from adapt.models import Model as Model
from adapt.models import Span as Span
from adapt.models import Tagger as Tagger
from adapt.planning import PlanReport as PlanReport
from adapt.planning import plan as plan
from adapt.predicting import Predictions as Predictions
from adapt.pretrained.hub import Pretrained as Pretrained
from adapt.pretrained.hub import load as load
from adapt.pretraining import pretrain as pretrain
from adapt.probing.pipeline import probe as probe
from adapt.probing.report import ProbeReport as ProbeReport
from adapt.run import Run as Run
from adapt.run import load_run as load_run
from adapt.run_table import RunTable as RunTable
from adapt.run_table import runs as runs
from adapt.training.losses import binary_cross_entropy as binary_cross_entropy
from adapt.training.losses import cross_entropy as cross_entropy
from adapt.training.losses import squared_error as squared_error
from adapt.training.optim import FROZEN as FROZEN
from adapt.training.optim import adamw as adamw
from adapt.training.optim import by_label as by_label
from adapt.training.optim import schedule as schedule
from adapt.training.step import State as State
from adapt.training.step import init_state as init_state
from adapt.training.step import make_eval as make_eval
from adapt.training.step import make_step as make_step
from adapt.training.strategies import Phase as Phase
from adapt.training.strategies import Strategy as Strategy
from adapt.training.strategies import strategy as strategy
from adapt.tree import check_like as check_like
from adapt.tree import digest as digest
from adapt.tree import discarded as discarded
from adapt.tree import drop as drop
from adapt.tree import graft as graft
from adapt.tree import label as label
from adapt.tree import merge as merge
from adapt.tree import paths as paths
from adapt.tree import select as select
from adapt.tree import summary as summary

__version__: str
__all__: list[str]
