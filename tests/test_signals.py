"""SIGTERM and Ctrl-C: what is under way ends whole, what is learnt is saved, the status says it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xdray.configfile import dump_config
from xdray.signals import Terminated, before_leaving, leaving, unbroken

from .conftest import MakeConfig
