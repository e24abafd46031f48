"""What only a GPU can show: captured updates, the buffer's copy there, precisions. Skipped where there is none."""

import copy
import warnings

import numpy as np
import pytest
import torch
from compare_toys import *  # noqa
