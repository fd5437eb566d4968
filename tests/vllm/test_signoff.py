"""The same sign-off against a real vLLM: is the prediction true where scheduler and cache are not ours?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import FLAGS, ROOT, Vllm
from estimator.capacity import predict, vllm_headline
from estimator.spec import EngineSpec, Workload
from loadtest.results import load_results
from loadtest.run_folder import RunFolder

MAX_MODEL_LEN = int(FLAGS["--max-model-len"])
SLOTS = int(FLAGS["--max-num-seqs"])
