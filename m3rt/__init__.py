"""BGE-M3: texts in; dense, sparse and ColBERT embeddings out, from one forward pass.

And its reranker: pairs of texts in, scores out.
"""

import os

__version__ = "0.1.0"

# ONNX Runtime sends usage to its makers, and keeps an identifier in the home directory, unless it
# is told not to before it is imported. Who wants that, sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from m3rt import score as score
from m3rt.api import load as load
from m3rt.api import load_reranker as load_reranker
from m3rt.errors import ArtifactError as ArtifactError
from m3rt.errors import CheckpointError as CheckpointError
from m3rt.errors import EngineError as EngineError
from m3rt.errors import InputError as InputError
from m3rt.errors import M3Error as M3Error
from m3rt.errors import ParityError as ParityError
from m3rt.errors import UnavailableError as UnavailableError
from m3rt.flag import BGEM3FlagModel as BGEM3FlagModel
from m3rt.flag_reranker import FlagReranker as FlagReranker
from m3rt.reranker import Ranked as Ranked
from m3rt.reranker import Relevance as Relevance
from m3rt.reranker import Reranker as Reranker
from m3rt.runtime import M3 as M3
from m3rt.types import Embeddings as Embeddings
from m3rt.types import Heads as Heads
from m3rt.types import Sparse as Sparse
